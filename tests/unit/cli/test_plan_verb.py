"""`mainspring plan`: what is asked for is kept to, or refused before anything is planned."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.cli.app import main
from mainspring.spec import Settings

Call = Callable[..., tuple[int, str, str]]
RECIPE = """
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig


def model(vocab, seq_len, eos_id):
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 4, "ffn": 128}
    return Decoder(DecoderConfig(vocab=256, context=seq_len, eos_id=eos_id, **sizes))


recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=2, global_batch=8, seq_len=64))
"""
CLUSTER = """
name = "h"
link = { gigabytes_per_s = 50, microseconds = 20 }
[[nodes]]
device = "H100-SXM5-80GB"
devices = 8
price_usd_per_hour = 3.5
"""
RUNS = Path(__file__).parents[1] / "plan" / "held_out_runs.csv"


@pytest.fixture
def call(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """The command line in a folder with a recipe and a cluster file."""
    (tmp_path / "r.py").write_text(RECIPE, "utf-8")
    (tmp_path / "c.toml").write_text(CLUSTER, "utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mainspring", "--home", settings.home, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_page_that_cannot_be_written_is_refused_before_planning(call: Call, tmp_path: Path) -> None:
    for path, words in (("nowhere/x.html", "there is no folder nowhere"), (str(tmp_path), "is a folder")):
        code, out, err = call("plan", "explain", "missing.py", "--html", path)
        assert code == 2
        assert words in err
        assert not out


@pytest.mark.parametrize("verb", [("plan",), ("plan", "explain"), ("train", "--data", "dataset:none")])
def test_a_wish_that_nothing_knows_is_refused_with_what_was_meant(call: Call, verb: tuple[str, ...]) -> None:
    code, _, err = call(*verb, "r.py", "-s", "shedule=zbv")
    assert code == 2
    assert "-s shedule=zbv: neither a recipe nor a plan has a shedule" in err
    assert "did you mean schedule?" in err


def test_a_saved_plan_takes_no_wishes(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("plan", "r.py", "--cluster", "c.toml", "--json")
    assert code == 0
    (tmp_path / "plan.json").write_text(out, "utf-8")
    for option in (("-s", "tp=2"), ("--cluster", "c.toml"), ("--ranks", "2"), ("--optimize", "cost")):
        code, _, err = call("plan", "explain", "plan.json", *option)
        assert code == 2
        assert f"plan.json is a plan that was made, and {option[0]} would have made another" in err
        assert "give the recipe instead" in err
    assert call("plan", "explain", "plan.json")[0] == 0


def test_a_recipe_is_explained_as_it_would_be_planned(call: Call) -> None:
    code, out, _ = call("plan", "explain", "r.py", "--cluster", "c.toml", "--ranks", "2", "--optimize", "cost")
    assert code == 0
    assert "chosen for cost" in out
    assert "2 ranks on 1 node" in out
    assert "s of pipeline rank 0 of replica 0, which others wait for: forward" in out
    assert "0.00 USD" not in out


@pytest.mark.parametrize(
    ("wish", "words"),
    [("tpp=2", "did you mean tp?"), ("schedul=zbv", "did you mean schedule?"), ("learning=1", "known: beta1")],
)
def test_a_misspelt_wish_is_answered_with_the_nearest_one(call: Call, wish: str, words: str) -> None:
    code, _, err = call("plan", "r.py", "--cluster", "c.toml", "-s", wish)
    assert code == 2
    assert words in err
    assert "replicate" in err
    assert "warmup_steps" in err


def test_a_pattern_needs_no_list(call: Call) -> None:
    for value in ("head", '["head"]'):
        code, out, _ = call("plan", "r.py", "--cluster", "c.toml", "-s", "tp=2", "-s", f"replicate={value}", "--json")
        assert code == 0
        assert '"head"' in out


def test_a_table_without_alternatives_is_not_ranked(call: Call) -> None:
    code, out, _ = call("plan", "validate", str(RUNS))
    assert code == 0
    assert "0 groups" not in out
    assert not any(line.endswith((" ", ",")) for line in out.splitlines() if line.startswith("all"))
