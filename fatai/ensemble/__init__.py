"""Combine predictions: averages, weights searched on out-of-fold predictions, stacking."""
