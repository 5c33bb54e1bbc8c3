"""Sampling: right distributions, and draws that depend on the request alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mainspring.serve.engine.sample import NUCLEUS_TOKENS, Choice, describe, sample, uniform

WIDE = 2 * NUCLEUS_TOKENS


def tokens(logits: torch.Tensor, choices: list[Choice]) -> list[int]:
    return [each.token for each in sample(logits, choices) if each is not None]


def choice(index: int = 0, *, seed: int = 3, temperature: float = 1.0, top_p: float = 1.0) -> Choice:
    return Choice(temperature, top_p, seed, index, None)


def test_uniform_numbers_are_spread_evenly_and_differ_between_seeds() -> None:
    numbers = torch.tensor([uniform(seed, index) for seed in range(20) for index in range(500)], dtype=torch.float64)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert torch.histc(numbers, bins=10, min=0, max=1).tolist() == pytest.approx([1000] * 10, rel=0.12)
    assert len(numbers.unique()) == len(numbers)


def test_draws_follow_the_softmax_at_the_asked_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = torch.tensor(tokens(logits.expand(4000, 4), [choice(i, temperature=0.7) for i in range(4000)]))
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares == pytest.approx((logits / 0.7).softmax(-1), abs=0.025)


def test_top_p_keeps_the_shortest_list_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = torch.tensor(tokens(logits.expand(3000, 4), [choice(i, top_p=0.7) for i in range(3000)]))
    shares = torch.bincount(drawn, minlength=4) / 3000
    assert shares == pytest.approx(torch.tensor([0.625, 0.375, 0, 0]), abs=0.03)


def test_a_tiny_top_p_is_greedy() -> None:
    logits = torch.randn(8, 50)
    assert tokens(logits, [choice(i, top_p=1e-6) for i in range(8)]) == logits.argmax(-1).tolist()


@given(st.integers(0, 2**63), st.integers(0, 500), st.sampled_from([0.0, 0.5, 1.3]), st.sampled_from([0.3, 0.9, 1.0]))
def test_a_draw_does_not_depend_on_the_batch(seed: int, index: int, temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, WIDE, generator=generator) * 3
    mine = Choice(temperature, top_p, seed, index, None)
    others = [Choice(0.0, 1.0, 1, 1, None), Choice(1.0, 1.0, 2, 2, 3), Choice(1.9, 0.999, 3, 3, None)]
    assert tokens(logits[:1], [mine]) == tokens(logits[:4], [mine, *others])[:1]


def test_a_nucleus_larger_than_the_fast_path_is_still_exact() -> None:
    logits = torch.zeros(1, WIDE).expand(400, WIDE)
    drawn = tokens(logits, [choice(i, top_p=0.9) for i in range(400)])
    assert max(drawn) > NUCLEUS_TOKENS
    assert len(set(drawn)) > 300


def test_log_probabilities_are_of_the_model_not_of_the_temperature() -> None:
    logits = torch.randn(2, 30)
    found = sample(logits, [Choice(0.0, 1.0, 0, 0, 30), Choice(1.7, 0.5, 0, 0, 2)])
    assert found[0] is not None
    assert found[1] is not None
    assert math.fsum(math.exp(value) for _, value in found[0].top) == pytest.approx(1.0, abs=1e-5)
    assert found[0].top[0] == (found[0].token, pytest.approx(found[0].logprob))
    assert found[1].logprob == pytest.approx(logits[1].log_softmax(-1)[found[1].token].item(), abs=1e-5)
    assert len(found[1].top) == 2


def test_rows_may_ask_for_no_alternatives_at_all() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    assert describe(logits, [0], tops=[0])[0].top == ()
    assert len(describe(logits, [0], tops=[10_000])[0].top) == logits.shape[-1]


def test_a_row_that_is_not_made_of_numbers_has_no_token() -> None:
    logits = torch.randn(3, 10)
    logits[1, 4] = float("nan")
    found = sample(logits, [choice(0, temperature=0), choice(1), choice(2)])
    assert [each is None for each in found] == [False, True, False]
