"""How a plan is executed: one file for each axis and each concern, `run` puts them together.

`axes` process groups · `share` who works on which rows · `data` replicas and ZeRO · `tensor` divided matrices ·
`stages` and `pipeline` · `tied` shared parameters · `clip` the gradient's norm · `layout` and `gather` whole tensors
from parts · `collectives` what autograd goes through.

The names below are looked up on first use: whoever plans reads models, and needs nothing of torch that runs them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.train.parallel.data import repeated_blocks
    from mainspring.train.parallel.gather import whole
    from mainspring.train.parallel.group import Group
    from mainspring.train.parallel.layout import local
    from mainspring.train.parallel.loss import LossModule
    from mainspring.train.parallel.run import Parallel
    from mainspring.train.parallel.share import share_of

__all__ = ["Group", "LossModule", "Parallel", "local", "repeated_blocks", "share_of", "whole"]

_HOMES = {
    "Group": "group",
    "LossModule": "loss",
    "Parallel": "run",
    "local": "layout",
    "repeated_blocks": "data",
    "share_of": "share",
    "whole": "gather",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
