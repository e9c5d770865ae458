"""The list of tests that are thorough: each is there."""

import ast

from ..conftest import slower_than_their_worth
from .source import ROOT, parsed


def test_every_test_that_is_listed_as_thorough_is_there() -> None:
    for line in slower_than_their_worth():
        path, _, name = line.partition("::")
        defined = {node.name for node in ast.walk(parsed(ROOT / path)) if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in defined, line
