"""Benchmarks: measured comparisons with the plain way, and scores of trained systems."""
