"""The entry point of the console script: where a library of a command is missing, one line and no traceback."""

import sys

USAGE = 2  # as in `commands`, which cannot be imported without its libraries


def main() -> None:
    """`commands.main`; where a library is not there, exit code 2 and the line that says which extra brings it."""
    try:
        from .commands import main as run

        run()
    except ImportError as error:
        from ...core.requirements import explained

        line = explained(error, "this command")
        if line is None:
            raise
        print(f"samebits: {line}", file=sys.stderr)
        sys.exit(USAGE)
