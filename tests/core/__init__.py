"""`samebits.core` against exact fractions."""
