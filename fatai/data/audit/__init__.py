"""Checks of a data set: every sound file, the tables, duplicates and leaks."""
