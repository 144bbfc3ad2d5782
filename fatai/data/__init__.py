"""Data sets: from files and tables to batches."""
