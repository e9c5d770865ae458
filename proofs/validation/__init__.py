"""A model in torch and its port to JAX, layer by layer: which numbers rounding explains, which it does not, and which
usual mistake gives the others. Imports `inputs` and `modes`."""
