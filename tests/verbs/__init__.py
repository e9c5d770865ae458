"""Verbs in all three rooms side by side."""
