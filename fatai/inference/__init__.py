"""From a trained model to predictions, and from several to one."""
