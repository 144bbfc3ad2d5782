"""Noisy labels: select, relabel and weight clips, find label issues, plan the stages of training with them."""
