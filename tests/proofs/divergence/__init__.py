"""`samebits diverge`."""
