"""Random changes: draw first, then apply a pure function."""

from . import filling, masks, on_items, on_spec, on_wave
