"""How good the predictions are: ranking and calibration."""
