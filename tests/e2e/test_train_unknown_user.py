"""Training where the process's user has no name and no home, as in containers that are run under any number."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_multinode import PUBLISH

NOBODY = 54_321
"""A user in no password file."""

RECIPE = """
import mainspring as ms
from mainspring.models.transformer import Decoder
from mainspring.spec import DecoderConfig

def model(vocab, eos_id):
    return Decoder(DecoderConfig(
        vocab=vocab, hidden=16, layers=1, heads=2, kv_heads=1, ffn=24, context=16, eos_id=eos_id))

recipe = ms.Recipe(model=model, config=ms.TrainConfig(
    steps=2, global_batch=4, microbatch=2, seq_len=12, checkpoint_every=1))
"""
TRAIN = (
    PUBLISH
    + """
    with ms.connect(settings=settings) as ws:
        tokens = publish_tokens(ws.store)
        plan = ws.plan(order["recipe"], data=tokens, ranks=2)
        made = ws.train(order["recipe"], data=tokens, plan=plan, name="tiny").result(120)
        print(json.dumps([os.getuid(), os.environ.get("HOME"), made.ref]))
"""
)


def as_nobody(program: str, *, told: object, home: Path | None) -> "subprocess.CompletedProcess[str]":
    """Run `program` as a user without a name, HOME or password entry, who may still do what we may."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    if home is not None:
        environment["MAINSPRING_HOME"] = str(home)
    return subprocess.run(
        ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", sys.executable, "-c", program],
        input=json.dumps(told),
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Skips where the kernel gives this user no user namespace."""
    if shutil.which("unshare") is None or as_nobody("", told={}, home=None).returncode:
        pytest.skip("no user namespaces here, so no other user to be")


@pytest.mark.slow
def test_a_gang_trains_for_a_user_whom_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    home = tmp_path / "home"
    told = {"settings": {"home": str(home)}, "recipe": str(tmp_path / "recipe.py")}
    done = as_nobody(textwrap.dedent(TRAIN), told=told, home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [NOBODY, None, "model:tiny@1"]


def test_a_home_that_cannot_be_told_is_asked_for() -> None:
    done = as_nobody("import mainspring as ms; ms.connect()", told={}, home=None)
    assert done.returncode
    assert "cannot tell where ~/.mainspring is" in done.stderr
