"""Choosing tokens for a batch of sequences, each by its own rules and its own random numbers.

The draw for output token `i` of a request is a pure function of (seed, i): a counter-based generator, as in Salmon
et al. 2011, with one 64-bit finaliser (SplitMix64, Steele et al. 2014) for one uniform number. A seed therefore
gives the same text alone, in any batch, and after a preemption. The token is where the cumulative distribution
passes that number.

Log-probabilities are of the model's own distribution, before temperature and top-p, as vLLM reports them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
NUCLEUS_TOKENS = 1024
"""Top-p first looks at this many tokens; only rows whose nucleus is larger pay for a full sort."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose for one row: `index` counts the tokens this request has sampled; `logprobs` None is none."""

    temperature: float
    top_p: float
    seed: int
    index: int
    logprobs: int | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen token; `logprob` and the `top` alternatives when asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def mix(value: int) -> int:
    """SplitMix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, index: int) -> float:
    """The `index`-th number of the stream `seed`, uniform in [0, 1) with 53 bits."""
    return (mix(mix(seed & _MASK) ^ index) >> 11) * 2.0**-53


def sample(logits_NV: Tensor, choices: Sequence[Choice]) -> list[Sampled | None]:
    """Choose one token per row of float logits; None where the row is not made of numbers."""
    peaks, tokens = logits_NV.max(-1)
    # How a row is drawn depends on the row alone: a batch mate's top-p must not change the order of summation.
    drawn = [row for row, choice in enumerate(choices) if choice.temperature >= GREEDY_BELOW]
    for draw, rows in (
        (_draw_any, [row for row in drawn if choices[row].top_p >= 1]),
        (_draw_nucleus, [row for row in drawn if choices[row].top_p < 1]),
    ):
        if rows:
            picked = logits_NV if len(rows) == len(choices) else logits_NV[rows]
            tokens[rows] = draw(picked, [choices[row] for row in rows])
    chosen: list[int] = tokens.tolist()
    result: list[Sampled | None] = [Sampled(token) for token in chosen]
    reported = [row for row, choice in enumerate(choices) if choice.logprobs is not None]
    if reported:
        tops = [choices[row].logprobs or 0 for row in reported]
        described = describe(logits_NV[reported], [chosen[row] for row in reported], tops=tops)
        for row, sampled in zip(reported, described, strict=True):
            result[row] = sampled
    for row, peak in enumerate(peaks.tolist()):
        if not math.isfinite(peak):
            result[row] = None
    return result


def describe(logits_NV: Tensor, tokens: Sequence[int], *, tops: Sequence[int]) -> list[Sampled]:
    """The log-probability of each given token, and of the `tops[row]` likeliest in its row."""
    logprobs_NV = logits_NV.float().log_softmax(-1)
    own = logprobs_NV[range(len(tokens)), list(tokens)].tolist()
    values, ids = logprobs_NV.topk(min(max(tops), logprobs_NV.shape[-1]), dim=-1)
    alternatives = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        Sampled(token, logprob, tuple(zip(row_ids[:top], row_values[:top], strict=True)))
        for token, logprob, top, (row_ids, row_values) in zip(tokens, own, tops, alternatives, strict=True)
    ]


def _draw_any(logits_NV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Draw one token per row from the whole distribution."""
    return _invert(_heated(logits_NV, choices), choices)


def _draw_nucleus(logits_NV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Draw one token per row from its nucleus: the shortest list of likeliest tokens whose mass reaches top-p."""
    probs_NV = _heated(logits_NV, choices)
    top_p = torch.tensor([[choice.top_p] for choice in choices], dtype=torch.float64, device=logits_NV.device)
    size = min(NUCLEUS_TOKENS, probs_NV.shape[-1])
    kept, ids = probs_NV.topk(size, dim=-1)
    if size < probs_NV.shape[-1] and bool((kept.sum(-1, keepdim=True, dtype=torch.float64) < top_p).any()):
        kept, ids = probs_NV.sort(dim=-1, descending=True)
    before = kept.cumsum(-1, dtype=torch.float64) - kept
    return ids.gather(-1, _invert(kept.masked_fill(before >= top_p, 0.0), choices)[:, None])[:, 0]


def _heated(logits_NV: Tensor, choices: Sequence[Choice]) -> Tensor:
    heat = torch.tensor([[choice.temperature] for choice in choices], device=logits_NV.device)
    return (logits_NV.float() / heat).softmax(-1)


def _invert(weights_NV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """The first index where the cumulative weight passes the row's uniform number times the total."""
    numbers = [[uniform(choice.seed, choice.index)] for choice in choices]
    numbers_N1 = torch.tensor(numbers, dtype=torch.float64, device=weights_NV.device)
    cumulative = weights_NV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, numbers_N1 * cumulative[:, -1:], right=True)[:, 0]
