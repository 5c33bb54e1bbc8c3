"""Which checkpoints are complete, told without torch: by the mark that is the last thing written of each.

The same question is asked by a rank that resumes, by the console that offers to resume, and by the hint under a
failure; all of them ask here, so that nobody is offered a checkpoint that a resumed run would not take.
"""

from pathlib import Path

from mainspring.store.folder import RemoteFolder

MARKER = "committed"
PREFIX = "step-"


def committed(where: str | Path) -> list[str]:
    """The names of the complete checkpoints in the folder or behind the fsspec URL `where`, newest first.

    Raises `Unavailable` when an object store does not answer.
    """
    if "://" in str(where):
        marked = (path.rpartition("/") for path in RemoteFolder(str(where)).files() if path.startswith(PREFIX))
        names = [folder for folder, _, file in marked if file == MARKER]
    else:
        names = [marker.parent.name for marker in Path(where).glob(f"{PREFIX}*/{MARKER}")]
    return sorted(names, key=lambda name: (step_of(name), name), reverse=True)


def step_of(name: str) -> int:
    """The step after which the checkpoint `name` was taken."""
    return int(name.removeprefix(PREFIX).partition("-")[0])
