"""Random changes: draw first, then apply a pure function."""

from fatai.augment import item, padding, spec, spec_augment, wave
