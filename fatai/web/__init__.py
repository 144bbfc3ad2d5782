"""Pages that this machine serves to its own browser: the tagger and the review of labels."""
