"""Random changes: draw first, then apply a pure function."""
