"""The entry point of the console script: where a library of a command is missing, one line and no traceback."""

import sys

USAGE = 2  # as in `commands`, which cannot be imported without its libraries


def main() -> None:
    """`commands.main`; where a library is not there, or typer is old, exit code 2 and the line that says what to do.

    An old typer would fail somewhere in the middle, with a traceback.
    """
    from ...core.requirements import explained, shortage

    try:
        line = shortage("typer", "this command")
        if not line:
            from .commands import main as run

            run()
    except ImportError as error:
        line = explained(error, "this command")
        if line is None:
            raise
    if line:
        print(f"samebits: {line}", file=sys.stderr)
        sys.exit(USAGE)
