"""Prototypes: their knife edges, what users name, and faults that are found."""
