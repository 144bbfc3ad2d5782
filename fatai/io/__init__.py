"""Files: atomic writes, size-limited text and JSON, CSV tables, progress of long loops."""
