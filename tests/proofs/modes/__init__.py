"""The execution modes."""
