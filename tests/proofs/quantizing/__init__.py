"""Quantizing checkpoints and models, by plans and rules of thumb."""
