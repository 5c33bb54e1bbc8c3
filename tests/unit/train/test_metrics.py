"""The live record: each step once, also after a crash."""

import json

import pytest
from training_gang import plan_of, task_of

from mainspring.plan.flops import model_flops
from mainspring.spec import BlockSpec, ModelSpec
from mainspring.train.loop import StepResult
from mainspring.train.metrics import MetricsFile, Recorder

BLOCK = BlockSpec(
    name="b",
    count=2,
    params=100,
    flops_per_token=200.0,
    attention_flops_per_token2=4.0,
    activation_bytes_per_token=8.0,
    output_bytes_per_token=4.0,
)
MODEL = ModelSpec(name="m", blocks=(BLOCK,), seq_len=12)


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_that_a_crash_cut_short_is_written_again_however_long_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5, "padding": "x" * 100}) for step in range(1, 2001)]
    path.write_text("\n".join(lines) + '\n{"step": 20')
    rows = MetricsFile(path)
    assert rows.last is not None
    assert rows.last["step"] == 2000
    rows.append({"step": 2001, "loss": 0.25})
    rows.close()
    assert steps_in(path) == list(range(1, 2002))


def test_a_resumed_run_adds_only_steps_that_are_not_there_yet(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (1, 2, 3):
        first.append({"step": step, "loss": 0.5})
    first.close()
    second = MetricsFile(path)
    assert second.last == {"step": 3, "loss": 0.5}
    for step in (2, 3, 4):
        second.append({"step": step, "loss": 9.0})
    second.close()
    assert steps_in(path) == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[1])["loss"] == 0.5


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step"', '{"step": 3, "loss": 1.0}'])
def test_a_line_cut_short_by_a_crash_is_written_anew(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    again = MetricsFile(path)
    assert again.last == {"step": 2}
    again.append({"step": 3})
    again.close()
    assert steps_in(path) == [1, 2, 3]


def test_rows_say_speed_utilisation_and_energy_and_go_on_where_the_last_attempt_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "joules": 50.0, "seconds": 100.0}\n')
    recorder = Recorder(path, plan_of(), MODEL, task_of(folder=tmp_path), log_every=3)
    recorder.start(4)
    for step in (5, 6, 7, 8):
        held_out = 3.0 if step == 7 else None
        result = StepResult(step, loss=2.0, grad_norm=1.0, lr=0.1, held_out_loss=held_out)
        recorder.record(result, final_step=8, failed_saves=int(step == 8))
    recorder.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert [row["step"] for row in rows] == [6, 7, 8]
    assert [row.get("held_out_loss") for row in rows] == [None, 3.0, None]
    assert [row.get("failed_saves") for row in rows] == [None, None, 1]
    for row in rows:
        assert row["tokens"] == row["step"] * 8 * 12
        assert row["seconds"] >= 100
        assert row["joules"] >= 50
    useful = model_flops(MODEL, tokens=1, seq_len=12)
    peaks = {round(row["tokens_per_s"] * useful / row["mfu"]) for row in rows}
    assert len(peaks) == 1
