"""Noisy labels: select, relabel and weight clips, find label issues, and plan the stages of training with noisy clips."""
