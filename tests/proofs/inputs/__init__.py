"""Inputs, and the comparator."""
