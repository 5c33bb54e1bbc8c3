"""How a training run reaches a machine that shares nothing with the driver but the store.

The payload holds texts and references, no paths: a rank writes the recipe into a folder of its own, and the first rank
of each node fetches the tokens and the tokenizer from the store. What opens the store (a database URL may hold a
password) travels apart from the rest of the payload, see `Job.secret_json`.

Absent on purpose: data files beside a recipe. Only its text and the modules beside it that it imports travel.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from mainspring.spec import Settings, SpecError, Task, TrainPayload, load_settings
from mainspring.store import Store, parse
from mainspring.train.parallel import Group
from mainspring.train.recipe import LoadedRecipe, load_recipe


@dataclass(frozen=True, slots=True)
class Inputs:
    """The folders of a run's artifacts on this node."""

    tokens: Path
    tokenizer: Path


def sources_of(loaded: LoadedRecipe) -> tuple[tuple[str, str], ...]:
    """The recipe and the modules beside it that it has imported: (relative path, text), the recipe first."""
    folder = loaded.path.parent
    paths = [loaded.path]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        path = folder.joinpath(*name.split("."))
        if file in (f"{path}.py", f"{path}/__init__.py") and file != str(loaded.path):
            paths.append(Path(file))
    return tuple((path.relative_to(folder).as_posix(), _text(path)) for path in paths)


def settings_for_ranks(store: Store) -> Settings:
    """What a rank needs to open this store from its own machine: no token, and no default that depends on home."""
    given = store.settings
    return Settings(
        home=str(store.home),
        workspace=given.workspace,
        database_url=given.database,
        artifacts_url=given.artifacts,
    )


def split_secret(payload: TrainPayload) -> tuple[str, str]:
    """The payload as JSON for everybody, and the part of it that only the ranks may read."""
    fields = parse.to_dict(payload)
    secret = {"settings_json": fields.pop("settings_json")}
    return json.dumps(fields), json.dumps(secret)


def unpack_recipe(order: TrainPayload, task: Task) -> LoadedRecipe:
    """Write the recipe and its modules into this rank's own folder and load it from there."""
    folder = Path(task.run_dir) / "recipe" / f"rank-{task.rank}"
    for name, text in order.sources:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return load_recipe(folder / order.sources[0][0])


def rank_settings(order: TrainPayload, task: Task) -> Settings:
    """The store of the driver, with the home of this machine; the driver's own home where the two share it."""
    theirs = parse.read_json(order.settings_json, Settings)
    if Path(task.run_dir).is_relative_to(theirs.home_path):
        return theirs
    return replace(theirs, home=load_settings().home)


def fetch_inputs(order: TrainPayload, group: Group) -> Inputs:
    """Fetch what the run learns from, once on every node, verified."""

    def fetch() -> str:
        with Store.open(rank_settings(order, group.task)) as store:
            return json.dumps([str(store.fetch(ref)) for ref in (order.tokens, order.tokenizer)])

    tokens, tokenizer = json.loads(group.once_per_node(fetch))
    return Inputs(tokens=Path(tokens), tokenizer=Path(tokenizer))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from error
