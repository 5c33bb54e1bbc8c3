"""The best node for a class of tasks, kept up to date instead of searched for.

Each class keeps a score for every node and the best of every block of 64. A placement writes its node to a log; when
a class comes again, only the nodes logged since are scored again, and a block is searched again only when it lost its
best. A decision therefore costs some tens of scores and one look at each block. A class that slept for more than a
turn of the log is ranked anew; nodes that began alike and did not change since are then scored once.
"""

import numpy as np

from mainspring.cluster.schedule.kernels import NOWHERE, Board, Index, Ints, compiled, give_back, score, survey, take

FAILED = -1
BLOCK = 64
CHANGED = -1


@compiled
def rank_all(board: Board, c: Index) -> None:
    """Score every node for class `c`."""
    ranks, sample = board.ranks, board.sample
    sample[:] = CHANGED
    for n in range(board.at.cpu.shape[0]):
        kind = board.kind[n]
        if kind != CHANGED and sample[kind] != CHANGED:
            ranks.score[c, n], ranks.device[c, n] = ranks.score[c, sample[kind]], ranks.device[c, sample[kind]]
            continue
        ranks.score[c, n], ranks.device[c, n] = score(board, n, c)
        if kind != CHANGED:
            sample[kind] = n
    for block in range(ranks.block.shape[1]):
        search_block(board, c, block)


@compiled
def search_block(board: Board, c: Index, block: Index) -> None:
    """Find the best score in a block."""
    best = np.float32(NOWHERE)
    for n in range(block * BLOCK, min((block + 1) * BLOCK, board.at.cpu.shape[0])):
        best = min(best, board.ranks.score[c, n])
    board.ranks.block[c, block] = best


@compiled
def rank_again(board: Board, c: Index, n: Index) -> None:
    """Score one changed node for class `c`."""
    ranks, block = board.ranks, n // BLOCK
    cost, ranks.device[c, n] = score(board, n, c)
    before, now = ranks.score[c, n], np.float32(cost)
    ranks.score[c, n] = now
    if now <= ranks.block[c, block]:
        ranks.block[c, block] = now
    elif before == ranks.block[c, block]:
        search_block(board, c, block)


@compiled
def winner(board: Board, c: Index) -> int:
    """The best node for class `c`, of equal ones the lowest number, or `FAILED`."""
    board.turn[0] += 1
    turn, ranks, size = board.turn[0], board.ranks, board.log.shape[0]
    seen, head = ranks.seen[c], board.head[0]
    if seen < 0 or head - seen > size:
        rank_all(board, c)
    else:
        for entry in range(seen, head):
            n = board.log[entry % size]
            if board.stamp[n] != turn:
                board.stamp[n] = turn
                rank_again(board, c, n)
    ranks.seen[c] = head
    first = 0
    for block in range(1, ranks.block.shape[1]):
        if ranks.block[c, block] < ranks.block[c, first]:
            first = block
    best = ranks.block[c, first]
    if best > NOWHERE / 2:
        return FAILED
    n = first * BLOCK
    while ranks.score[c, n] != best:
        n += 1
    return n


@compiled
def note(board: Board, n: Index) -> None:
    """Node `n` has changed."""
    board.kind[n] = CHANGED
    survey(board, n)
    board.log[board.head[0] % board.log.shape[0]] = n
    board.head[0] += 1


@compiled
def replay(board: Board, ops: Ints, classes: Ints, nodes: Ints, devices: Ints) -> None:
    """Do `ops` in order: `i >= 0` places task `i`, of class `classes[i]`; `-1 - i` ends it.

    Where a task was placed is written to `nodes[i]` (`FAILED` when nowhere) and, as bits, `devices[i]`.
    """
    for op in ops:
        i = op if op >= 0 else -1 - op
        c = classes[i]
        if op >= 0:
            n = winner(board, c)
            nodes[i] = n
            if n != FAILED:
                devices[i] = take(board, n, c, board.ranks.device[c, n])
                note(board, n)
        elif nodes[i] != FAILED:
            give_back(board, nodes[i], c, devices[i])
            note(board, nodes[i])
            nodes[i] = FAILED


@compiled
def survey_all(board: Board) -> None:
    """Bring what the board keeps about every node up to date."""
    for n in range(board.at.cpu.shape[0]):
        survey(board, n)
