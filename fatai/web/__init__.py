"""Local web pages: the tagger and the label review."""
