"""The commands of `fatai-submit`, by what they are for; each only translates words into calls."""
