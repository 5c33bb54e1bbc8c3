"""What travels with a training run: texts, references, and a secret apart from them."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from training_gang import plan_of, task_of

from mainspring.spec import Settings, SpecError, TrainPayload
from mainspring.store import Store, parse
from mainspring.train.parallel import Group
from mainspring.train.recipe import load_recipe
from mainspring.train.travel import (
    fetch_inputs,
    rank_settings,
    settings_for_ranks,
    sources_of,
    split_secret,
    unpack_recipe,
)

RECIPE = """
import json
import mainspring as ms
import traveller
from luggage.bag import WIDTH
from torch import nn

def model(vocab):
    return nn.Linear(WIDTH, traveller.height(vocab))

recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=7, global_batch=4, seq_len=8))  # na\u00efve
"""


def payload_of(**changes: object) -> TrainPayload:
    plan = plan_of()
    common = {"run_id": "r", "sources": (), "plan_json": parse.to_json(plan), "config_json": "{}", "output": "m"}
    return TrainPayload(**{**common, "tokens": "tokens:t", "tokenizer": "tokenizer:t", "checkpoints": "c", **changes})


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Path]:
    """A recipe with a module and a package beside it, and more that it does not import."""
    folder = tmp_path / "driver"
    (folder / "luggage").mkdir(parents=True)
    (folder / "recipe.py").write_text(RECIPE, encoding="utf-8", newline="\r\n")
    (folder / "traveller.py").write_text("def height(vocab):\n    return vocab\n")
    (folder / "luggage" / "__init__.py").touch()
    (folder / "luggage" / "bag.py").write_text("WIDTH = 3\n")
    (folder / "unused.py").write_text("raise RuntimeError\n")
    yield folder
    forget_modules()


def forget_modules() -> None:
    for name in ("traveller", "luggage", "luggage.bag"):
        sys.modules.pop(name, None)


def test_a_recipe_arrives_with_the_modules_it_imports_and_its_digest(at_home, tmp_path):
    loaded = load_recipe(at_home / "recipe.py")
    sources = sources_of(loaded)
    assert sources[0][0] == "recipe.py"
    assert {name for name, _ in sources} == {"recipe.py", "traveller.py", "luggage/__init__.py", "luggage/bag.py"}
    forget_modules()
    at_home.rename(tmp_path / "gone")
    arrived = unpack_recipe(payload_of(sources=sources), task_of(3, folder=tmp_path / "rank"))
    assert arrived.digest == loaded.digest
    assert arrived.path.is_relative_to(tmp_path / "rank" / "recipe" / "rank-3")
    assert arrived.recipe.build({"vocab": 5}).weight.shape == (5, 3)


def test_a_recipe_that_is_no_utf_8_is_refused(at_home):
    loaded = load_recipe(at_home / "recipe.py")
    (at_home / "traveller.py").write_bytes(b"# \xff\n")
    with pytest.raises(SpecError, match=r"traveller\.py is not UTF-8"):
        sources_of(loaded)


def test_what_opens_the_store_is_in_the_secret_part_alone(tmp_path):
    settings = Settings(home=str(tmp_path), token="swordfish", database_url=f"sqlite:///{tmp_path}/other.db")
    with Store.open(settings) as store:
        given = settings_for_ranks(store)
        assert (given.token, given.database_url) == ("", settings.database_url)
        assert given.artifacts_url == str(tmp_path / "artifacts")
    payload = payload_of(settings_json=parse.to_json(replace(given, database_url="postgresql://me:hunter2@host/db")))
    open_part, secret = split_secret(payload)
    assert "hunter2" not in open_part
    assert "hunter2" not in repr(payload)
    assert parse.read_dict(json.loads(open_part) | json.loads(secret), TrainPayload) == payload


def test_a_rank_uses_the_home_of_its_machine_unless_it_shares_the_drivers(tmp_path, monkeypatch):
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "node"))
    theirs = Settings(home=str(tmp_path / "driver"), database_url="postgresql://host/db", workspace="team")
    order = payload_of(settings_json=parse.to_json(theirs))
    assert rank_settings(order, task_of(folder=tmp_path / "driver" / "runs" / "r")) == theirs
    apart = rank_settings(order, task_of(folder=tmp_path / "node" / "gangs" / "r"))
    assert apart == replace(theirs, home=str(tmp_path / "node"))


def test_the_first_rank_of_a_node_fetches_from_the_store(tmp_path):
    (tmp_path / "file").write_text("content")
    with Store.open(Settings(home=str(tmp_path / "home"))) as store:
        refs = [store.publish(kind, "t", tmp_path / "file").ref for kind in ("tokens", "tokenizer")]
        settings = parse.to_json(settings_for_ranks(store))
    order = payload_of(tokens=refs[0], tokenizer=refs[1], settings_json=settings)
    task = task_of(folder=tmp_path / "home" / "runs" / "r")
    inputs = fetch_inputs(order, Group(task))
    assert (inputs.tokens / "file").read_text() == (inputs.tokenizer / "file").read_text() == "content"
