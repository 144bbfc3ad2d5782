"""Augmentation of clips in training: waves, spectrograms, masks, mixing, padding.

The imports fill the registry `AUGMENTATIONS`.
"""

from fatai.augment import padding, spec, spec_augment, wave  # noqa: F401 - they register their augmentations
