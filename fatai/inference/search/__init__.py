"""Search of recordings: windows of sound by example, by tag, and by uncertainty, from an index of their embeddings."""
