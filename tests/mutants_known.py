"""Mutants that no test can notice, each with the reason: what they compute is the same."""

EQUIVALENT: dict[str, str] = {}
