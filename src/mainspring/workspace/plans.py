"""What a workspace answers before anything is spent: its machines, how a recipe would run on them, how good that is."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.spec import (
    Calibration,
    Cluster,
    Device,
    Link,
    NotFound,
    Objective,
    Plan,
    SpecError,
)
from mainspring.store import parse
from mainspring.workspace.capacity import Capacity
from mainspring.workspace.records import Named, ref_of

if TYPE_CHECKING:
    from mainspring.plan.validate import Validation
    from mainspring.train.dryrun import DryRun

VOCAB = 4096


class Plans(Capacity):
    """The part of a workspace that plans and judges plans."""

    def hardware(self, cluster: str | Path = "") -> Cluster:
        """The machines at hand, with the figures of `calibrate` where there are any, or those of a cluster file."""
        return self._machines(cluster)[0]

    def calibration(self, ref: Named) -> Calibration:
        """The figures that a machine was found to have."""
        return parse.read_json((self.store.fetch(ref_of(ref)) / "calibration.json").read_text("utf-8"), Calibration)

    def plan(
        self,
        recipe: str | Path,
        *,
        data: Named = "",
        optimize: Objective = "time",
        ranks: int | None = None,
        cluster: str | Path = "",
        vocab: int = VOCAB,
        overrides: Sequence[str] = (),
    ) -> Plan:
        """How `recipe` would run: mesh, bytes, seconds, watts and price, before spending any."""
        from mainspring.train import launch

        machines, known = self._machines(cluster)
        facts = self._facts(data, vocab)
        found = launch.plan_for(
            recipe, facts=facts, cluster=machines, ranks=ranks, objective=optimize, overrides=overrides
        )
        return replace(found, calibrations=known)

    def menu(
        self,
        recipe: str | Path,
        *,
        data: Named = "",
        optimize: Objective = "time",
        cluster: str | Path = "",
        vocab: int = VOCAB,
        overrides: Sequence[str] = (),
    ) -> tuple[Plan, ...]:
        """The best plan for each number of ranks that could be offered: 1, 2, 4 ... and all of them."""
        from mainspring.train import launch

        machines, known = self._machines(cluster)
        facts = self._facts(data, vocab)
        found = launch.menu_for(recipe, facts=facts, cluster=machines, objective=optimize, overrides=overrides)
        return tuple(replace(plan, calibrations=known) for plan in found)

    def dry_run(
        self,
        recipe: str | Path,
        *,
        world: int = 0,
        rank: int = 0,
        plan: Plan | None = None,
        data: Named = "",
        cluster: str | Path = "",
        vocab: int = VOCAB,
        overrides: Sequence[str] = (),
    ) -> "DryRun":
        """What `rank` of `plan` would hold and send in a step, tried on made-up ranks.

        Without a plan, of the best one for `world` ranks on as many such machines as that takes.
        """
        from mainspring.train import launch

        facts = self._facts(data, vocab)
        machines = self._machines(cluster)[0] if plan is None else None
        return launch.dry_run_of(
            recipe, facts=facts, plan=plan, cluster=machines, world=world, rank=rank, overrides=overrides
        )

    def validate_plans(self, runs: str | Path) -> "Validation":
        """How far the planner's predictions are off for the measured runs of a CSV table."""
        from mainspring.hardware import catalog
        from mainspring.plan.validate import validate

        def machine(name: str) -> tuple[Device, Link]:
            entry = catalog.find_entry(name)
            return entry.device, entry.link

        if not Path(runs).is_file():
            raise NotFound(f"no file {runs}", hint="a CSV table with one measured run in each row")
        try:
            rows = list(csv.DictReader(Path(runs).read_text("utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SpecError(
                f"cannot read {runs}: {error}", hint="it should be a table in CSV, as UTF-8 text"
            ) from error
        return validate(rows, machine)

    def _facts(self, data: Named, vocab: int) -> dict[str, Any]:
        from mainspring.train import launch

        if data and self.artifact(data).kind == "tokens":
            return dict(launch.facts_of(self.store, ref_of(data)))
        return {"vocab": vocab, "eos_id": 0, "bos_id": 0}

    def _machines(self, cluster: str | Path) -> tuple[Cluster, tuple[str, ...]]:
        """The cluster, and the calibrations whose figures are in it."""
        from mainspring.hardware import topology

        found = super().hardware(cluster)
        if cluster:
            return found, ()
        known = {artifact.ref: self.calibration(artifact) for artifact in self.store.newest("calibration")}
        used = [ref for ref, each in known.items() if topology.calibrates(each, found)]
        for ref in used:
            found = topology.calibrated(found, known[ref])
        return found, tuple(used)
