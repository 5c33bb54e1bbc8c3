"""The command line as scripts see it: its verbs and options, its exit codes, its JSON, and what `--help` costs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from mainspring.cli.app import cli, main
from mainspring.spec import Settings
from mainspring.store import Store

# A verb or an option that comes, goes or is renamed changes other people's scripts: change this table with it.
VERBS = {
    "hw": "--cluster --json",
    "data publish": "NAME SOURCE --dedup --json",
    "data show": "REF --json",
    "data head": "REF -n --json",
    "data diff": "OLD NEW --json",
    "estimate": "WORK --params --tokens --active --bits --adapter --images --latent-tokens --steps --rate --prompt "
    "--answer --batch --context --kv-bytes --device --devices --instances --utilisation --price --carbon --pue --json",
    "plan recipe": "RECIPE --data --optimize --ranks --cluster --set --menu --json",
    "plan calibrate": "--json",
    "plan dryrun": "RECIPE --world --rank --plan --data --cluster --set --json",
    "plan explain": "PLAN --data --optimize --ranks --cluster --set --html --json",
    "plan diff": "FIRST SECOND --json",
    "plan validate": "RUNS --json",
    "train": "RECIPE --data --name --optimize --ranks --plan --resume --menu --queue --priority --set --dry-run --json",
    "eval": "MODEL --data --compare-to --json",
    "compress": "MODEL --scheme --data --name --json",
    "serve": "MODEL --port --host --name --json",
    "run": "FLOW --set --watch --dry-run --json",
    "app publish": "NAME --corpus --engine --embedder --json",
    "app ask": "NAME QUESTION --json",
    "app feedback": "NAME TRACE --up/--down --correction --comment --json",
    "quota": "FILE --cluster --scene --json",
    "why": "JOB --scene --queue --ranks --devices --model --cpus --priority --level --json",
    "queue": "--scene --json",
    "nodes": "--scene --json",
    "manifest": "TARGET --cluster --quotas --image --namespace --json",
    "gather": "QUEUE JOB --scene --hours --ranks --devices --model --cpus --level --dry-run --json",
    "job submit": "ENTRY --payload --name --ranks --cpus --devices --memory-gib --own-cores --queue --starts "
    "--priority --grace-s --menu --secret --alone-s --time-limit-s --json",
    "job map": "ENTRY ITEMS --ranks --cpus --devices --queue --block-s --json",
    "job ls": "-n --json",
    "job stop": "JOB --json",
    "schedule": "--json",
    "drain": "NODE --reason --undo --json",
    "simulate": "--nodes --pods --policy --load --seeds --html --json",
    "ps": "--kind --all -n --json",
    "logs": "RUN --rank --tail --json",
    "stop": "RUN --json",
    "ls": "KIND --json",
    "show": "REF --json",
    "lineage": "REF --direction --json",
    "up": "--port --host --json",
    "doctor": "--repair --json",
    "token create": "NAME --role --days --json",
    "token revoke": "NAME --json",
}
SHARED = {"--home", "--address", "--token", "--version", "--install-completion", "--show-completion"}
HEAVY = ("torch", "ray", "lancedb", "lance", "daft", "transformers", "numpy", "pyarrow", "sqlalchemy", "pydantic")
HEAVY += ("fastapi", "nicegui", "httpx", "psutil", "onnxruntime", "altair")


class Done(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ms = Callable[..., Done]


@pytest.fixture
def ms(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Ms]:
    """The command line, run in this process on a workspace of this test's own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["mainspring", "--home", settings.home, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Store:
    """A store with two datasets' worth of artifacts and a run that failed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    data = store.publish("dataset", "handbook", folder, meta={"rows": 3})
    run = store.start_run("train", "handbook", config={}, inputs=(data.ref,))
    store.set_run_state(run.id, "RUNNING")
    store.publish("model", "handbook", folder, run=run.id)
    (store.run_dir(run.id) / "rank-0.log").write_text("hello from rank 0\n")
    store.set_run_state(run.id, "FAILED", "rank 1 on [gpu]: out of memory")
    return store


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every verb with its command."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield " ".join(path), command


def spelled(parameter: Any) -> str:
    """A parameter as the user writes it."""
    if parameter.param_type_name == "argument":
        return parameter.name.upper()
    return "/".join([max(parameter.opts, key=len), *parameter.secondary_opts])


def test_the_verbs_and_their_options_are_the_ones_agreed_on() -> None:
    root = typer.main.get_command(cli)
    found = {
        name: " ".join(spelled(given) for given in command.params if "--help" not in given.opts)
        for name, command in leaves(root)
    }
    assert found == VERBS
    assert {spelled(given) for given in root.params if "--help" not in given.opts} == SHARED


def test_every_verb_and_every_option_explains_itself() -> None:
    for name, command in leaves(typer.main.get_command(cli)):
        assert (command.help or "").strip().endswith("."), name
        for given in command.params:
            known = given.param_type_name == "argument" and given.name in ("name", "question", "old", "new")
            assert known or getattr(given, "help", None), f"{name} {spelled(given)}"


@pytest.mark.parametrize(
    ("verbs", "allowed"),
    [([""], []), (list(VERBS), ["pydantic"])],  # typer reads the types of a verb's parameters with pydantic
    ids=["mainspring", "verbs"],
)
def test_help_imports_nothing_heavy(verbs: list[str], allowed: list[str]) -> None:
    code = f"""
import sys
from mainspring.cli import main
for verb in {verbs!r}:
    sys.argv = ["mainspring", *verb.split(), "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, verb
print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert set(done.stderr.split()) <= set(allowed)
    assert all(verb in done.stdout for verb in verbs)


@pytest.mark.parametrize(
    ("line", "code", "kind", "told"),
    [
        ("frobnicate", 2, "SpecError", "frobnicate"),
        ("trian recipe.py", 2, "SpecError", "Did you mean 'train'"),
        ("ls --frob", 2, "SpecError", "--frob"),
        ("data publish x . --dedup much", 2, "SpecError", "'strict', 'balanced'"),
        ("lineage model:handbook --direction sideways", 2, "SpecError", "'sideways'"),
        ("ps -n 0", 2, "SpecError", "-n"),
        ("train", 2, "SpecError", "RECIPE"),
        ("train recipe.py", 2, "SpecError", "--data"),
        ("train --resume x --ranks 2", 2, "SpecError", "no other options"),
        ("train no.py --data dataset:handbook", 2, "SpecError", "no.py"),
        ("train no.py --data dataset:none", 2, "NotFound", "dataset:none"),
        ("run no.toml", 2, "NotFound", "no.toml"),
        ("show model:hanbook", 2, "NotFound", "model:hanbook"),
        ("show hanbook", 2, "SpecError", "not a reference"),
        ("show model:handbook@7", 2, "NotFound", "model:handbook@7"),
        ("logs nope", 2, "NotFound", "nope"),
        ("logs train --rank 7", 2, "SpecError", "rank 7"),
        ("stop nope", 2, "NotFound", "nope"),
        ("eval model:none", 2, "NotFound", "model:none"),
        ("compress model:none", 2, "NotFound", "model:none"),
        ("app ask none why?", 2, "NotFound", "app:none"),
        ("serve model:none", 2, "NotFound", "model:none"),
        ("serve no/such/model", 2, "NotFound", "no/such/model"),
        ("serve model:handbook --host 0.0.0.0", 2, "SpecError", "no token"),
        ("up --host 0.0.0.0", 2, "SpecError", "no token"),
        ("token create me --role king", 2, "SpecError", "'king'"),
        ("--address http://127.0.0.1:9 ls", 75, "Unavailable", "does not answer"),
        ("--address http://127.0.0.1:9 up", 2, "SpecError", "cannot be done"),
        ("data publish x/y .", 2, "SpecError", "not an artifact name"),
        ("data publish x nowhere", 2, "NotFound", "nowhere"),
        ("manifest", 2, "SpecError", "Choose from: kueue, kuberay"),
        ("manifest kueue", 2, "SpecError", "no quota file is in force"),
        ("quota nowhere.toml", 2, "NotFound", "nowhere.toml"),
        ("estimate serve --params -1", 2, "SpecError", "params must be above 0"),
        ("why --queue a --ranks 1 --devices 1.5", 2, "SpecError", "not 1.5 of them"),
    ],
)
def test_every_error_has_its_exit_code_and_is_json_when_json_was_asked_for(
    ms: Ms, made: Store, line: str, code: int, kind: str, told: str
) -> None:
    done = ms(*line.split(), "--json")
    assert (done.code, done.out) == (code, "")
    error = json.loads(done.err)["error"]
    assert error["type"] == kind
    assert told in error["message"]
    plain = ms(*line.split())
    assert plain.code == code
    first, _, rest = plain.err.partition("\n")
    assert first == f"error: {error['message']}"
    assert rest == (f"hint: {error['hint']}\n" if error["hint"] else "")


def test_what_is_remembered_is_shown_as_json(ms: Ms, made: Store) -> None:
    assert {item["kind"] for item in ms("ls", "--json").json} == {"dataset", "model"}
    assert [item["kind"] for item in ms("ls", "model", "--json").json] == ["model"]
    assert ms("show", "model:handbook", "--json").json["files"][0]["path"] == "config.json"
    assert len(ms("lineage", "model:handbook", "--json").json["edges"]) == 2
    (run,) = ms("ps", "--all", "--json").json
    assert run["reason"] == "rank 1 on [gpu]: out of memory"
    assert ms("ps", "--json").json == []
    told = ms("logs", run["id"][-6:], "--json").json
    assert told == {"run": run["id"], "log": "== rank-0.log\nhello from rank 0\n"}
    assert ms("stop", run["id"], "--json").json["state"] == "FAILED"


def test_what_is_remembered_is_shown_to_people_without_colours_or_lost_brackets(ms: Ms, made: Store) -> None:
    shown = [
        ms("ls"),
        ms("show", "model:handbook"),
        ms("lineage", "model:handbook"),
        ms("ps", "-a"),
        ms("logs", "train"),
    ]
    assert all(done.code == 0 and "\x1b" not in done.out and done.err == "" for done in shown)
    assert "model:handbook@1" in shown[0].out
    assert "rank 1 on [gpu]: out of memory" in shown[3].out
    assert "dataset:handbook@1 --[train handbook" in shown[2].out


def test_a_token_is_made_printed_once_and_revoked(ms: Ms) -> None:
    token = ms("token", "create", "anna", "--role", "viewer", "--json").json
    assert token["name"] == "anna"
    assert token["token"]
    assert ms("token", "create", "ben").out.strip()
    assert ms("token", "revoke", "anna", "--json").json == {"revoked": "anna"}
    assert ms("token", "revoke", "nobody").code == 2


def test_doctor_says_what_to_do_and_exits_1_when_something_needs_you(ms: Ms, made: Store) -> None:
    assert {check["state"] for check in ms("doctor", "--json").json} == {"ok"}
    for blob in Path(made.home, "artifacts").rglob("*"):
        if blob.is_file():
            blob.chmod(0o600)
            blob.write_bytes(b"rotten")
    done = ms("doctor", "--json")
    assert done.code == 1
    assert next(check for check in done.json if check["state"] == "bad")["name"] == "store"
    assert ms("doctor", "--repair").code == 1  # what is damaged cannot be repaired, only published again


def test_a_typo_in_the_environment_is_an_error_and_not_a_default(ms: Ms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_PROT", "1")
    done = ms("ls")
    assert done.code == 2
    assert "MAINSPRING_PORT" in done.err


def test_the_version_is_printed(ms: Ms) -> None:
    assert ms("--version").out.startswith("mainspring 0.")


def test_a_reader_who_leaves_early_ends_the_command_quietly(made: Store, settings: Settings) -> None:
    for _ in range(40):
        made.start_run("eval", "x" * 60, config={"filler": "y" * 4000})
    mainspring = str(Path(sys.executable).with_name("mainspring"))
    line = [mainspring, "--home", settings.home, "ps", "--all", "-n", "40", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == "["
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 128 + signal.SIGPIPE


def test_a_shell_completes_verbs_choices_and_references(made: Store, settings: Settings) -> None:
    mainspring = str(Path(sys.executable).with_name("mainspring"))

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        told = {"_MAINSPRING_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run([mainspring], env={**os.environ, **told}, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("mainspring tr") == ["train"]
    assert completed("mainspring lineage x --direction ") == ["up", "down", "both"]
    assert completed("mainspring show model") == ["model:handbook@1"]
    (run,) = made.runs()
    assert completed(f"mainspring --home {settings.home} stop tr") == [run.id]
