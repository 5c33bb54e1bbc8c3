"""The hands: one file per verb, each a thin call into the workspace and a way to draw what comes back."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C is no error while its verbs are still being imported, either."""
    try:
        from mainspring.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
