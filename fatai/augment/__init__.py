"""Augmentation of clips in training: waves, spectrograms, masks, mixing, padding. Draw first, then apply a pure function."""

from fatai.augment import item, padding, spec, spec_augment, wave
