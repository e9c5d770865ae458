"""`samebits.torch_frontend` beside core."""
