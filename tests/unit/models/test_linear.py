"""W8A8: close to float, the same to the last bit in any batch, and right without the fast kernel."""

import copy
import logging
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mainspring.models import linear as linear_module
from mainspring.models.linear import (
    W8A8Linear,
    best_kernel,
    check_w8a8,
    describe_w8a8,
    quantise_rows,
    quantise_weight,
    replace_linears,
)
from mainspring.spec import SpecError

KERNELS = ("onednn", "torch")
needs_onednn = pytest.mark.skipif(best_kernel() != "onednn", reason="this CPU's int8 kernel fails its self-test")


def layer(kernel: str | None = None, *, bias: bool = True, sizes: tuple[int, int] = (96, 80)) -> W8A8Linear:
    torch.manual_seed(0)
    return W8A8Linear.from_linear(nn.Linear(*sizes, bias=bias), kernel=kernel)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [pytest.param("onednn", marks=needs_onednn), "torch"])
@torch.no_grad()
def test_the_result_is_within_two_percent_of_float(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(512, 256)
    x = torch.randn(3, 7, 512)
    found = W8A8Linear.from_linear(exact, kernel=kernel)(x.to(dtype))  # pyright: ignore[reportArgumentType]
    assert found.dtype == dtype
    assert found.shape == (3, 7, 256)
    assert ((found.float() - exact(x)).norm() / exact(x).norm()).item() < 0.02


@needs_onednn
@given(rows=st.integers(1, 40), seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(rows: int, seed: int, scale: float) -> None:
    """A scale per tensor would fail here: a large batch mate would coarsen every other row."""
    generator = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, 96, generator=generator)
        x[0] *= scale
        quantised, x = layer(), x.to(dtype)
        alone = torch.cat([quantised(x[row : row + 1]) for row in range(rows)])
        assert torch.equal(quantised(x), alone)
        order = torch.randperm(rows, generator=generator)
        assert torch.equal(quantised(x[order]), alone[order])


@needs_onednn
@torch.no_grad()
def test_both_kernels_compute_the_same_numbers() -> None:
    x = torch.randn(9, 96)
    fast, slow = layer("onednn"), layer("torch")
    torch.testing.assert_close(fast(x), slow(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast(x.bfloat16()), slow(x.bfloat16()), atol=2e-2, rtol=2e-2)


def test_a_kernel_that_saturates_is_found_out_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def saturating(q: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pairs = (q.float() * weight.float()[:, None]).unflatten(-1, (-1, 2)).sum(-1).clamp(-32768, 32767)
        return (pairs.sum(-1).T - 128 * weight.float().sum(-1)).to(dtype)

    monkeypatch.setattr(linear_module, "_multiply_onednn", saturating)
    monkeypatch.setattr(linear_module, "_pack_onednn", lambda weight, _: (weight, weight, weight))
    best_kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert best_kernel() == "torch"
        assert "slow kernel" in caplog.text
        x = torch.randn(4, 96)
        assert torch.equal(layer()(x), layer("torch")(x))
    finally:
        monkeypatch.undo()
        best_kernel.cache_clear()


def test_a_missing_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear_module, "_pack_onednn", missing)
    best_kernel.cache_clear()
    assert best_kernel() == "torch"
    best_kernel.cache_clear()


@pytest.mark.parametrize("kernel", [pytest.param("onednn", marks=needs_onednn), "torch"])
@torch.no_grad()
def test_new_weights_are_used_after_loading_copying_and_pickling(kernel: str) -> None:
    x, first, second = torch.randn(2, 96), layer(kernel), layer(kernel)
    before = first(x)
    second.load_state_dict({**second.state_dict(), "weight": second.weight.flip(0)})
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), before)
    assert torch.equal(copy.deepcopy(first)(x), second(x))
    assert torch.equal(pickle.loads(pickle.dumps(first))(x), second(x))


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
@settings(max_examples=50, deadline=None)
def test_rounding_errs_by_at_most_half_a_step_and_never_overflows(seed: int, scale: float) -> None:
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(seed)) * scale
    q, step = quantise_rows(x)
    assert ((q.float() - 128) * step - x).abs().le(0.501 * step).all()
    assert (q.float() - 128).abs().max() == 127
    w, step = quantise_weight(x)
    assert w.dtype == torch.int8
    assert (w.float() * step - x).abs().le(0.501 * step).all()


def test_rows_of_zeros_stay_zeros() -> None:
    assert not layer(bias=False)(torch.zeros(3, 96)).any()
    q, _ = quantise_weight(torch.zeros(2, 4))
    assert not q.any()


def test_linears_are_replaced_by_name_and_pattern() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))})
    assert replace_linears(model, ignore=("a", r"re:b\.1")) == ["b.0"]
    assert isinstance(model["a"], nn.Linear)
    assert model["b"][0].weight.is_meta


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq'"),
        ({"format": "pack-quantized"}, "format 'pack-quantized'"),
        ({"config_groups": {}}, "0 config_groups"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4}}}}, "weights num_bits 4"),
    ],
)
def test_other_schemes_are_refused_by_name(change: dict[str, object], match: str) -> None:
    assert check_w8a8(describe_w8a8(["lm_head"]), where="config.json") == ["lm_head"]
    with pytest.raises(SpecError, match=match):
        check_w8a8(describe_w8a8() | change, where="config.json")
