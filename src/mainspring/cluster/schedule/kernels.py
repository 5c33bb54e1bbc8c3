"""What it costs to place a task on a node, compiled: the device capacity that would be stranded there.

Fragmentation gradient descent (Weng et al., USENIX ATC 2023): a node's waste is the device capacity that a task drawn
from the typical mix could not use there, and a task goes where it raises this least. The gradient is quantised:
unquantised, it chases differences that mean nothing. It sees a shortage only when the next task fails, so a second
term looks further ahead: devices for which the node has too little cpu or memory left at the mean ratio of the demand
are lost already. A price per device model keeps what only few tasks may use for those that must. Ties go to smaller
nodes, then to fuller ones.

Quantities are integers: thousandths of a cpu or of a device, MiB. A closed node owes more cpu than any node has.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Index = Any  # an integer, of whichever kind numba takes it for
WHOLE = 1000
NOWHERE = 1e30
# Without counting references: nothing here allocates, and whoever calls holds the board. Counting those of the forty
# arrays of a board at each access took fifteen times as long as all arithmetic.
compiled = numba.njit(cache=True, _nrt=False)  # pyright: ignore[reportCallIssue] its stubs do not know `_nrt`
inlined = numba.njit(cache=True, _nrt=False, forceinline=True)  # pyright: ignore[reportCallIssue]


class Nodes(NamedTuple):
    """Free capacity by node: `devices[n, k]` is what is left of device k; beyond `size[n]` there is none."""

    cpu: Ints
    memory: Ints
    devices: Ints
    size: Ints
    model: Ints


class Classes(NamedTuple):
    """Distinct requests: cpu, memory, number of devices, thousandths of each, and the models each may use."""

    cpu: Ints
    memory: Ints
    number: Ints
    milli: Ints
    allowed: Flags


class Mix(NamedTuple):
    """The typical tasks against which waste is measured, in groups of equal number, share and allowed models.

    Group `g` needs `number[g]` devices with `levels[level[g]]` thousandths free; its members are
    `start[g]:start[g + 1]` of `cpu`, `memory` and `weight`. The weights, and that of tasks without devices, add to 1.
    """

    levels: Ints
    level: Ints
    number: Ints
    allowed: Flags
    start: Ints
    cpu: Ints
    memory: Ints
    weight: Floats


class Knobs(NamedTuple):
    """Weights of the score: steps of the quantised gradient, imbalance, price by model, and what breaks ties.

    `cpu_each` and `memory_each` are what a device goes with in the demand, per thousandth.
    """

    steps: float
    skew: float
    cpu_each: float
    memory_each: float
    price: Floats
    small: float
    pack: float


class Ranks(NamedTuple):
    """Per class: the score of every node, the device chosen there, the best score of each block of nodes, and how
    much of the log it has seen."""

    score: NDArray[np.float32]
    device: NDArray[np.int8]
    block: NDArray[np.float32]
    seen: Ints


class Board(NamedTuple):
    """Everything a decision reads. `log` is a ring of the nodes that changed, `head` how many ever did.

    `kind[n]` tells which nodes began alike, until `n` changes; `sample` is scratch by kind. Of node `n` is kept: `free`
    capacity of all devices, `roomy[n, j]`, which counts those with room for level j of the mix, `crumbs[n, j]`, what
    the others have left, and `waste`, what a typical task could not use. `stamp` holds the last `turn` in which a node
    was scored again; `useful` is scratch by group of the mix.
    """

    at: Nodes
    of: Classes
    mix: Mix
    knobs: Knobs
    ranks: Ranks
    kind: Ints
    sample: Ints
    free: Ints
    roomy: Ints
    crumbs: Ints
    waste: Floats
    log: Ints
    head: Ints
    turn: Ints
    stamp: Ints
    useful: Floats


@inlined
def fits(board: Board, n: Index, c: Index) -> Index:
    """Whether a task of class `c` fits on node `n` now."""
    at, of = board.at, board.of
    if at.cpu[n] < of.cpu[c] or at.memory[n] < of.memory[c]:
        return False
    need = of.number[c]
    if need == 0:
        return True
    if not of.allowed[c, at.model[n]]:
        return False
    for k in range(at.size[n]):
        if at.devices[n, k] >= of.milli[c]:
            need -= 1
    return need <= 0


@compiled
def survey(board: Board, n: Index) -> None:
    """Bring what the board keeps about node `n` up to date."""
    levels, roomy, crumbs = board.mix.levels, board.roomy[n], board.crumbs[n]
    roomy[:] = 0
    crumbs[:] = 0
    board.free[n] = 0
    for k in range(board.at.size[n]):
        left = board.at.devices[n, k]
        board.free[n] += left
        for j in range(levels.shape[0]):
            if left >= levels[j]:
                roomy[j] += 1
            else:
                crumbs[j] += left
    board.waste[n] = 0.0
    if board.free[n] > 0:
        weigh_groups(board, board.at.cpu[n], board.at.memory[n], board.at.model[n])
        board.waste[n] = stranded(board, n, 0, 0, 0)


@inlined
def weigh_groups(board: Board, cpu: Index, memory: Index, model: Index) -> None:
    """Fill the scratch: how much of each group of the mix a node with this much cpu and memory could serve."""
    mix, useful = board.mix, board.useful
    for g in range(mix.number.shape[0]):
        total = 0.0
        for t in range(mix.start[g], mix.start[g + 1]):
            total += mix.weight[t] * ((cpu >= mix.cpu[t]) & (memory >= mix.memory[t]))  # a branch here costs more
        useful[g] = total * mix.allowed[g, model]


@inlined
def stranded(board: Board, n: Index, times: Index, left: Index, after: Index) -> float:
    """Expected free capacity of `n` that a typical task could not use, if `times` devices went from `left` to `after`.

    Reads the scratch that `weigh_groups` fills.
    """
    mix = board.mix
    free = board.free[n] - times * (left - after)
    lost = float(free)
    for g in range(mix.number.shape[0]):
        level = mix.levels[mix.level[g]]
        roomy, crumbs = board.roomy[n, mix.level[g]], board.crumbs[n, mix.level[g]]
        if left >= level:
            roomy -= times
        else:
            crumbs -= times * left
        if after >= level:
            roomy += times
        else:
            crumbs += times * after
        if roomy >= mix.number[g]:
            lost -= board.useful[g] * (free - crumbs)
    return lost


@inlined
def lopsided(board: Board, free: Index, cpu: Index, memory: Index) -> float:
    """Of `free`, what has too little cpu or memory beside it at the ratio of the demand."""
    return max(0.0, free - min(cpu / board.knobs.cpu_each, memory / board.knobs.memory_each))


@inlined
def score_share(board: Board, n: Index, number: Index, milli: Index) -> tuple[float, int]:
    """The least waste once `number` devices of `n` each give `milli`, and the first of them.

    A task that needs several devices takes the first with room; they are taken for equally full here.
    """
    devices = board.at.devices
    best, where = 1e300, -1
    for k in range(board.at.size[n]):
        left = devices[n, k]
        repeated = left < milli
        for other in range(k):
            repeated |= devices[n, other] == left
        if repeated:
            continue
        waste = stranded(board, n, number, left, left - milli)
        if waste < best:
            best, where = waste, k
        if number > 1 or milli == WHOLE:
            break
    return best, where


@compiled
def score(board: Board, n: Index, c: Index) -> tuple[Any, int]:
    """What it costs to place class `c` on node `n`, lower is better, and on which device a share would go."""
    if not fits(board, n, c):
        return NOWHERE, -1
    at, of, knobs = board.at, board.of, board.knobs
    number, milli, device, waste = of.number[c], of.milli[c], -1, 0.0
    cpu, memory = at.cpu[n] - of.cpu[c], at.memory[n] - of.memory[c]
    free = board.free[n]
    after = free - number * milli
    if after > 0:
        weigh_groups(board, cpu, memory, at.model[n])
        if number > 0:
            waste, device = score_share(board, n, number, milli)
        else:
            waste = stranded(board, n, 0, 0, 0)
    cost = -np.floor(knobs.steps / (1.0 + np.exp((waste - board.waste[n]) / WHOLE)))
    lost = lopsided(board, after, cpu, memory) - lopsided(board, free, at.cpu[n], at.memory[n])
    cost += knobs.skew * lost / WHOLE + knobs.small * at.size[n] + knobs.pack * after / WHOLE
    if number > 0:
        cost += knobs.price[at.model[n]] * number * milli / WHOLE
    return cost, device


@compiled
def take(board: Board, n: Index, c: Index, device: Index) -> int:
    """Give class `c` its place on node `n`, from `device` on if it is not negative; returns the devices as bits."""
    at, of = board.at, board.of
    at.cpu[n] -= of.cpu[c]
    at.memory[n] -= of.memory[c]
    used, need = 0, of.number[c]
    for k in range(at.size[n]):
        if need > 0 and at.devices[n, k] >= of.milli[c] and k >= device:
            at.devices[n, k] -= of.milli[c]
            used |= 1 << k
            need -= 1
    return used


@compiled
def give_back(board: Board, n: Index, c: Index, used: Index) -> None:
    """Undo `take`."""
    at, of = board.at, board.of
    at.cpu[n] += of.cpu[c]
    at.memory[n] += of.memory[c]
    for k in range(at.size[n]):
        if used >> k & 1:
            at.devices[n, k] += of.milli[c]
