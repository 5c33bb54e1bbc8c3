"""Kill the process groups of ranks whose node agent has vanished.

A rank dies with its agent through PR_SET_PDEATHSIG, but what the rank itself started (data-loader workers, shells)
does not. The agent therefore tells this process about every group it starts and ends, over a pipe; when the pipe
closes, whatever is left is killed. It leaves its parent at once, because a Ray worker that exits kills its direct
children first, and did kill this one. Run as a file with `-I -S`, so that it starts in 10 ms and imports nothing.
"""

import os
import signal
import sys
from collections.abc import Iterable


def survivors(lines: Iterable[str]) -> set[int]:
    """The groups that were announced with `+` and not taken back with `-` when `lines` ends."""
    alive: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line[0] == "+":
            alive.add(group)
        else:
            alive.discard(group)
    return alive


def main() -> None:
    """Watch standard input from outside the parent's family; at its end kill every group still alive."""
    if os.fork():
        os._exit(0)
    for group in survivors(sys.stdin):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
