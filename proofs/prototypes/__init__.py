"""Prototypes: a quantizer that is written once, as a formula over values, and runs in NumPy, torch and JAX with the
same bits; whether it does, mode by mode, gradients included; and the first primitive at which two modes part."""
