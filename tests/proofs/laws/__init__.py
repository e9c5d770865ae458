"""The laws, and faults that they must find."""
