"""Tests; a package so that its files can share `tests.exact`."""
