"""Data sets: the competition's layout, the bundled sample, downloads."""
