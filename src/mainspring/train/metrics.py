"""The live record of a run: one JSON line per logged step in `metrics.jsonl`, written by rank 0.

The file is append-only and each step is in it once, also after a crash: a resumed run computes the steps between its
checkpoint and the crash again, and gets the same numbers, so lines that are already there stay. Fields: `step`, `loss`
(nats, mean over the global batch), `lr`, `grad_norm` (before clipping), `tokens` (so far), `tokens_per_s`, `mfu` (model
FLOPs over peak, recomputation not counted), `joules` and `seconds` (so far, over all attempts), and where there are
any, `held_out_loss` and `failed_saves`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mainspring.hardware.devices import local_vendor
from mainspring.hardware.power import Meter
from mainspring.hardware.probe import probe_node
from mainspring.plan.flops import model_flops, peak_flops_per_s
from mainspring.spec import ModelSpec, Plan, Task
from mainspring.train.loop import StepResult

FILE = "metrics.jsonl"
TAIL_BYTES = 1 << 16  # holds the newest row
LOGGED = ("step", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "held_out_loss")

log = logging.getLogger(__name__)


class MetricsFile:
    """Appends rows in step order; `last` is the newest row in the file, of this attempt or an earlier one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - TAIL_BYTES))
        rows = self._file.read().split(b"\n")
        self.last: dict[str, float] | None = json.loads(rows[-2]) if len(rows) > 1 else None
        self._file.truncate(size - len(rows[-1]))  # a line that a crash cut short

    def append(self, row: dict[str, float]) -> None:
        """Write `row`, unless its step is in the file already. Readers see it at once."""
        if self.last is None or row["step"] > self.last["step"]:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            self.last = row

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a step is worth and what the job could do at most: the two sides of MFU."""

    step_tokens: int
    step_flops: float
    peak_flops_per_s: float


class Recorder:
    """Turns finished steps into rows: speed, utilisation, energy. Rank 0 runs it, for the whole job.

    Energy is that of this rank's machine times the number of machines, which a plan fills alike.
    """

    def __init__(self, path: Path, plan: Plan, model: ModelSpec, task: Task, *, log_every: int) -> None:
        node = probe_node()
        tokens = plan.global_batch * plan.seq_len
        self._machines = task.world / task.local_world
        # A CPU is one device that all ranks of its machine share.
        devices = self._machines if local_vendor() == "cpu" else task.world
        self._capacity = Capacity(
            step_tokens=tokens,
            step_flops=model_flops(model, tokens=tokens, seq_len=plan.seq_len),
            peak_flops_per_s=devices * peak_flops_per_s(node.devices[0], plan.precision),
        )
        self._meter = Meter(node)
        self._log_every = log_every
        self.rows = MetricsFile(path)
        before = self.rows.last or {"joules": 0.0, "seconds": 0.0}
        self._before_joules, self._before_s = before["joules"], before["seconds"]

    def start(self, step: int) -> None:
        """Start the clocks; `step` steps are done already."""
        self._meter.start()
        self._started_s = self._logged_s = time.perf_counter()
        self._logged_step = step

    def record(self, result: StepResult, *, final_step: int, failed_saves: int) -> None:
        """Write a row if this step is one to log: each `log_every`, the last, and those with a held-out loss."""
        due = result.step % self._log_every == 0 or result.step == final_step or result.held_out_loss is not None
        if not due:
            return
        now_s, energy = time.perf_counter(), self._meter.read()
        steps_per_s = (result.step - self._logged_step) / (now_s - self._logged_s)
        row = {
            "step": result.step,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens": result.step * self._capacity.step_tokens,
            "tokens_per_s": steps_per_s * self._capacity.step_tokens,
            "mfu": steps_per_s * self._capacity.step_flops / self._capacity.peak_flops_per_s,
            "joules": self._before_joules + energy.joules * self._machines,
            "seconds": self._before_s + now_s - self._started_s,
        }
        if result.held_out_loss is not None:
            row["held_out_loss"] = result.held_out_loss
        if failed_saves:
            row["failed_saves"] = failed_saves
        self.rows.append(row)
        told = {name: f"{value:.5g}" for name, value in row.items() if name in LOGGED}
        log.info("step", extra={**told, "joules_by": "+".join(energy.methods)})
        self._logged_s, self._logged_step = now_s, result.step

    def close(self) -> None:
        """Stop the clocks and close the file."""
        self._meter.stop()
        self.rows.close()
