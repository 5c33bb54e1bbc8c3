"""How a plan is executed: one file for each axis and each concern, `run` puts them together.

`axes` process groups · `share` who works on which rows · `data` replicas and ZeRO · `tensor` divided matrices ·
`stages` and `pipeline` · `tied` shared parameters · `clip` the gradient's norm · `layout` and `gather` whole tensors
from parts · `collectives` what autograd goes through.
"""

from mainspring.train.parallel.data import repeated_blocks
from mainspring.train.parallel.gather import whole
from mainspring.train.parallel.group import Group
from mainspring.train.parallel.layout import local
from mainspring.train.parallel.loss import LossModule
from mainspring.train.parallel.run import Parallel
from mainspring.train.parallel.share import share_of

__all__ = ["Group", "LossModule", "Parallel", "local", "repeated_blocks", "share_of", "whole"]
