"""One readable file per re-created system, and its schema."""
