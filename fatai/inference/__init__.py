"""Inference: predictions by test-time augmentation, embeddings, explanations, sound events; and `fat_learner`."""
