"""What `-s` may say where a recipe is planned: numbers of the recipe, and what the plan must be."""

import dataclasses
import difflib
import json
from collections.abc import Sequence

from mainspring.spec import Hints, SpecError, TrainConfig


def wishes(overrides: Sequence[str] | None) -> tuple[str, ...]:
    """What -s says, each of it known to the recipe or to the plan; a pattern may be given without its list."""
    lists = {field.name for field in dataclasses.fields(Hints) if field.default == ()}
    known = {field.name for kind in (Hints, TrainConfig) for field in dataclasses.fields(kind)}
    found: list[str] = []
    for each in overrides or ():
        path, equals, value = (part.strip() for part in each.partition("="))
        name = path.split(".")[0]
        if equals and name and name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            raise SpecError(
                f"-s {each}: neither a recipe nor a plan has a {name}",
                hint=(f"did you mean {near[0]}? " if near else "") + f"known: {', '.join(sorted(known))}",
            )
        bare = path in lists and not value.startswith(("[", '"', "'"))
        found.append(f"{path}={json.dumps([part.strip() for part in value.split(',')])}" if bare else each)
    return tuple(found)
