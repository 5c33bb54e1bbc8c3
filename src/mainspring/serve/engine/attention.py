"""Attention of one engine step over the KV slabs: the `attend` a `models.transformer.Decoder` is called with.

A step is one flat row of tokens: decoding sequences first (one token each, in slot order), then chunks of prompts.
Query heads that share a key head are laid out as extra query positions, so grouped-query attention needs no copy of
the keys, and sequences of different lengths share one call with a mask over the unused tail.

Sharing a call reads every sequence to the length of the longest. `cut_runs` therefore cuts the batch into runs of
neighbouring slots where reading less saves more than another call costs.

Shapes: R rows (tokens of the step), N query heads, K key heads, G = N / K, D width, B sequences, T chunk, L length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mainspring.serve.engine.kv import KVCache

CALL_TOKENS = 256
"""Keys that could be read in the time one more attention call takes (about 20 us against 80 ns per key)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring slots `[start, end)` that share one call, read to `length`."""

    start: int
    end: int
    length: int


def cut_runs(slots: Sequence[int], lengths: Sequence[int], *, call_tokens: int = CALL_TOKENS) -> list[Run]:
    """Cut ascending `slots` into runs of consecutive slots with the least total cost.

    A run costs `call_tokens` plus its padded size; the best last run of every prefix is kept (dynamic programming,
    quadratic in the number of sequences, skipped when nothing can be saved).
    """
    count = len(slots)
    dense = slots[-1] - slots[0] + 1 == count
    if dense and count * max(lengths) - sum(lengths) <= call_tokens:
        return [Run(slots[0], slots[-1] + 1, max(lengths))]
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, count + 1):
        longest, found = 0, None
        for start in range(end - 1, -1, -1):
            if start < end - 1 and slots[start] + 1 != slots[start + 1]:
                break
            longest = max(longest, lengths[start])
            cost = best[start][0] + call_tokens + (end - start) * longest
            if found is None or cost < found[0]:
                found = (cost, start)
        assert found is not None
        best.append(found)
    runs: list[Run] = []
    end = count
    while end:
        start = best[end][1]
        runs.append(Run(slots[start], slots[end - 1] + 1, max(lengths[start:end])))
        end = start
    return runs[::-1]


@dataclass(frozen=True, slots=True)
class Span:
    """What one sequence computes in a step: tokens `[start, start + count)` of the sequence in `slot`."""

    slot: int
    start: int
    count: int


class StepAttention:
    """Writes the step's keys and values to the slabs and attends; built once per step, called once per layer.

    `spans` are the decodes (count 1) in slot order, then the chunks.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span], *, positions_R: Tensor, groups: int) -> None:
        self._slab = cache.slab
        self._positions_R = positions_R
        self._slots_R = torch.tensor(
            [span.slot for span in spans for _ in range(span.count)], device=positions_R.device
        )
        decodes = [span for span in spans if span.count == 1]
        self._chunks = list(spans[len(decodes) :])
        self._decodes = len(decodes)
        self._runs: list[tuple[Run, int, Tensor | None]] = []
        row = 0
        dtype = cache.slab.dtype
        if decodes:
            for run in cut_runs([span.slot for span in decodes], [span.start + 1 for span in decodes]):
                rows = run.end - run.start
                mask = None
                if rows > 1:
                    mask_BL = _mask(positions_R[row : row + rows], run.length, dtype=dtype)
                    mask = mask_BL[:, None, None].expand(-1, 1, groups, -1)
                self._runs.append((run, row, mask))
                row += rows
        self._chunk_masks: list[Tensor] = []
        for span in self._chunks:
            mask_TL = _mask(positions_R[row : row + span.count], span.start + span.count, dtype=dtype)
            self._chunk_masks.append(mask_TL.repeat(groups, 1))
            row += span.count

    def __call__(self, layer: int, q_BTND: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Attend; the batch dimension is 1 and T holds the rows of the step."""
        keys_SKCD, values_SKCD = self._slab[layer].unbind(0)
        keys_SKCD[self._slots_R, :, self._positions_R] = k_BTKD[0].to(self._slab.dtype)
        values_SKCD[self._slots_R, :, self._positions_R] = v_BTKD[0].to(self._slab.dtype)
        rows, heads, width = q_BTND.shape[1:]
        shared = keys_SKCD.shape[1]
        q_RKGD = q_BTND.reshape(rows, shared, heads // shared, width).to(self._slab.dtype)
        parts: list[Tensor] = []
        for run, row, mask in self._runs:
            q_BKGD = q_RKGD[row : row + run.end - run.start]
            k_BKLD = keys_SKCD[run.start : run.end, :, : run.length]
            v_BKLD = values_SKCD[run.start : run.end, :, : run.length]
            parts.append(F.scaled_dot_product_attention(q_BKGD, k_BKLD, v_BKLD, attn_mask=mask).flatten(1))
        row = self._decodes
        for span, mask in zip(self._chunks, self._chunk_masks, strict=True):
            end = span.start + span.count
            parts.append(
                _attend_chunk(
                    q_RKGD[row : row + span.count],
                    keys_SKCD[span.slot, :, :end],
                    values_SKCD[span.slot, :, :end],
                    mask,
                )
            )
            row += span.count
        o_RF = parts[0] if len(parts) == 1 else torch.cat(parts)
        return o_RF.view(1, rows, heads, width).to(q_BTND.dtype)


def _mask(last_T: Tensor, length: int, *, dtype: torch.dtype) -> Tensor:
    """(T, L): 0 up to and including key `last_T`, minus infinity after it."""
    keys_L = torch.arange(length, device=last_T.device)
    mask_TL = torch.zeros(last_T.shape[0], length, dtype=dtype, device=last_T.device)
    return mask_TL.masked_fill_(keys_L > last_T[:, None], float("-inf"))


def _attend_chunk(q_TKGD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_QL: Tensor) -> Tensor:
    """Attention of one prompt chunk, (T, N * D); the group's heads are stacked as G * T query positions."""
    chunk, shared, groups, width = q_TKGD.shape
    q_KQD = q_TKGD.permute(1, 2, 0, 3).reshape(shared, groups * chunk, width)
    o_1KQD = F.scaled_dot_product_attention(q_KQD[None], k_KLD[None], v_KLD[None], attn_mask=mask_QL)
    return o_1KQD.view(shared, groups, chunk, width).permute(2, 0, 1, 3).reshape(chunk, -1)
