"""Training: the learner's base, data-parallel training, precision, learning-rate finder, cross-validation, metrics."""
