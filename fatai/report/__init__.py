"""What went well and wrong, to look at and listen to."""
