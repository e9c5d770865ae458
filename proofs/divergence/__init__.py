"""Where textbook code and its compiled form part, and torch and JAX, how often, and the smallest example. Imports
`inputs`, `modes` and `prototypes`."""
