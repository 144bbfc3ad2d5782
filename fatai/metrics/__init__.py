"""Metrics of predictions: ranking, classification per tag, calibration, confidence intervals."""
