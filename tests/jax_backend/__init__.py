"""`samebits.jax_backend` beside core."""
