"""Switches of the whole process. Set them as attributes of this module, at any time."""

import os

_VALUES = {"": False, "0": False, "false": False, "1": True, "true": True}


def flag(name: str) -> bool:
    """An environment variable as a switch: 1 or true, 0 or false in any case; off where it is not set.

    Raises:
        ValueError: another value.
    """
    text = os.environ.get(name, "")
    if text.lower() not in _VALUES:
        raise ValueError(f"the environment variable {name} must be 0, 1, false or true, got {text!r}")
    return _VALUES[text.lower()]


# Whether a state dict may lack the keys of quantizers, as that of a float model does: what is missing keeps the value
# that it has, or begins again where it depends on what is loaded. Begins as SAMEBITS_IGNORE_MISSING_KEYS says.
IGNORE_MISSING_KEYS = flag("SAMEBITS_IGNORE_MISSING_KEYS")
