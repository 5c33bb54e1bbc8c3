"""How good the planner is, asked of what was measured."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from mainspring.spec import Device, Link, NotFound

if TYPE_CHECKING:
    from mainspring.plan.validate import Validation


class Plans:
    """The part of a workspace that judges predictions."""

    def validate_plans(self, runs: str | Path) -> "Validation":
        """How far the planner's predictions are off for the measured runs of a CSV table."""
        from mainspring.hardware import catalog
        from mainspring.plan.validate import validate

        def machine(name: str) -> tuple[Device, Link]:
            entry = catalog.find_entry(name)
            return entry.device, entry.link

        if not Path(runs).is_file():
            raise NotFound(f"no file {runs}", hint="a CSV table with one measured run in each row")
        return validate(list(csv.DictReader(Path(runs).read_text("utf-8").splitlines())), machine)
