"""Sound event detection: events with start and end times in recordings of any length."""
