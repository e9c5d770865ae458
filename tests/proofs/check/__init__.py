"""`samebits check` and `samebits prove`."""
