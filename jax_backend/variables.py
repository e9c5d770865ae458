"""Kinds of variables that the modules here hold, beside those of flax."""

import jax
from flax import nnx


class Given(nnx.Variable[jax.Array]):
    """What stays as it is: constant scales, and codes of weights. No parameter, so nothing trains it."""
