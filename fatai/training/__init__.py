"""Where data and models meet."""
