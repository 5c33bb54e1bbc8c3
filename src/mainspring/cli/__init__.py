"""The hands: one file per verb, each a thin call into the workspace and a way to draw what comes back."""

import gc
import sys
from typing import NoReturn

# New objects between two searches for cycles, and how many make a deeper one: imports make hundreds of thousands of
# objects that stay, and by default are gone through again and again.
SELDOM = 50_000, 20, 20


def main() -> NoReturn:
    """Run the command line; Ctrl-C is no error while its verbs are still being imported, either."""
    gc.set_threshold(*SELDOM)
    try:
        from mainspring.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
