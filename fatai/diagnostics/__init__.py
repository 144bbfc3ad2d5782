"""Diagnostics: versions and problems of the installation, and a profile of the training steps."""
