"""Properties every spec must have, checked for all of them at once."""

import dataclasses
import pickle
import traceback

import pytest

import mainspring.spec
from mainspring.spec import (
    Answer,
    Cancelled,
    Citation,
    Denied,
    DoesNotFit,
    Mesh,
    NotFound,
    SpecError,
    Unavailable,
    load_settings,
)
from mainspring.spec.plugin import load_entry

SPECS = [value for value in vars(mainspring.spec).values() if dataclasses.is_dataclass(value)]
ERRORS = [Cancelled, Denied, DoesNotFit, NotFound, SpecError, Unavailable]


@pytest.mark.parametrize("cls", SPECS, ids=lambda cls: cls.__name__)
def test_a_spec_is_frozen_slotted_strict_and_explained(cls: type) -> None:
    assert cls.__dataclass_params__.frozen
    assert "__slots__" in vars(cls)
    assert cls.__pydantic_config__["extra"] == "forbid"
    assert cls.__doc__
    assert not cls.__doc__.startswith(cls.__name__ + "(")


def test_the_public_names_are_what_is_exported_in_order() -> None:
    names = mainspring.spec.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(mainspring.spec, name) for name in names)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_crosses_a_process_boundary_with_its_hint(kind: type[SpecError]) -> None:
    error = pickle.loads(pickle.dumps(kind("needs 33 GiB, has 24 GiB", hint="raise the shard degree")))
    assert type(error) is kind
    assert (str(error), error.hint) == ("needs 33 GiB, has 24 GiB", "raise the shard degree")


def test_a_traceback_shows_the_hint() -> None:
    told = traceback.format_exception_only(SpecError("no model:hand", hint="did you mean model:handbook?"))
    assert told[-1] == "hint: did you mean model:handbook?\n"


def test_an_answer_names_a_place_once() -> None:
    at = Citation(marker=1, chunk="0", source="os.path.join", path=("os.path.join", "Notes"), quote="", score=1.0)
    answer = Answer(trace="t", question="?", text="It joins. [1]", citations=(at,), mode="extracted")
    assert str(answer).splitlines()[1] == "  [1] os.path.join > Notes"


def test_a_misspelt_entry_point_names_the_nearest_one() -> None:
    with pytest.raises(SpecError, match="no 'loads_entry'") as caught:
        load_entry("mainspring.spec.plugin:loads_entry")
    assert caught.value.hint == "did you mean load_entry?"


def test_a_misspelt_environment_variable_names_the_nearest_one() -> None:
    with pytest.raises(SpecError, match="MAINSPRING_HOMME") as caught:
        load_settings({"MAINSPRING_HOMME": "/x"})
    assert caught.value.hint == "did you mean MAINSPRING_HOME?"


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(SpecError, match="MAINSPRING_PORT='http'"):
        load_settings({"MAINSPRING_PORT": "http"})


def test_a_mesh_multiplies_to_its_world_and_names_only_what_it_uses() -> None:
    assert Mesh(dp=2, fsdp=4).world == 8
    assert Mesh(dp=2, fsdp=4).label == "dp2 x fsdp4"
    with pytest.raises(ValueError, match="tp must be at least 1"):
        Mesh(tp=0)
