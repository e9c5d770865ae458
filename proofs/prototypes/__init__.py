"""Prototypes: a quantizer that is written once, as a formula over values, and runs in NumPy, torch and JAX with the
same bits; whether it does, mode by mode, gradients included; the first primitive at which two modes part; its knife
edges and its textbook code. Imports `inputs` and `modes`."""
