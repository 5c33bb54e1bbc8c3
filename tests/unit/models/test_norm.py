"""RMSNorm: torch's own numbers, faster."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from mainspring.models.norm import RMSNorm


def pair(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[RMSNorm, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    norm = RMSNorm(shape[-1], eps=1e-6)
    with torch.no_grad():
        norm.weight.add_(torch.rand(shape[-1], generator=generator))
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    return norm, x, torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", [(7, 32), (2, 5, 3, 16), (16,)])
def test_values_are_those_of_torch_to_the_last_bit_with_and_without_gradients(shape: tuple[int, ...]) -> None:
    norm, x, _ = pair(torch.float32, shape)
    expected = F.rms_norm(x, norm.weight.shape, norm.weight, 1e-6)
    assert torch.equal(norm(x), expected)
    with torch.no_grad():
        assert torch.equal(norm(x), expected)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_torch(dtype: torch.dtype, atol: float) -> None:
    norm, x, grad = pair(dtype, (3, 9, 32))
    exact_x, exact_weight = (each.detach().float().requires_grad_() for each in (x, norm.weight))
    F.rms_norm(exact_x, norm.weight.shape, exact_weight, 1e-6).backward(grad.float())
    norm(x).backward(grad)
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert (x.grad.dtype, norm.weight.grad.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(x.grad.float(), exact_x.grad, atol=atol, rtol=atol)
    torch.testing.assert_close(norm.weight.grad, exact_weight.grad, atol=1e-4, rtol=1e-4)


def test_gradients_agree_with_finite_differences() -> None:
    norm, x, _ = pair(torch.float32, (2, 6))
    numeric = torch.zeros_like(x)
    for at in range(x.numel()):
        step = torch.zeros(x.numel())
        step[at] = 1e-2
        moved = [norm((x + sign * step.view_as(x)).detach()).square().sum() for sign in (1, -1)]
        numeric.view(-1)[at] = (moved[0] - moved[1]) / 2e-2
    norm(x).square().sum().backward()
    torch.testing.assert_close(x.grad, numeric, atol=2e-2, rtol=2e-2)


def test_autocast_gives_queries_a_norm_in_their_own_type_without_a_warning() -> None:
    norm, x, _ = pair(torch.bfloat16, (4, 32))
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        assert norm(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert norm(x).dtype == torch.bfloat16
        assert norm(x.detach().float()).dtype == torch.float32


def test_backward_keeps_the_input_and_one_number_per_row() -> None:
    norm, x, _ = pair(torch.float32, (8, 64))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        norm(x)
    assert sorted(kept) == [8, 64, 8 * 64]


def test_autocast_does_not_round_what_is_in_float32() -> None:
    norm, x, grad = pair(torch.float32, (4, 32))
    expected = norm(x)
    expected.backward(grad)
    exact = x.grad
    x.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
    assert torch.equal(found, expected)
    found.backward(grad)
    assert exact is not None
    assert x.grad is not None
    assert torch.equal(x.grad, exact)
