"""Sections of a report; each function returns the values that the template shows."""
