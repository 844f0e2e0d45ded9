"""What a step asks of the machine, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from benchmarks import work
from benchmarks.problem import problem, training_step
from torch.nn import functional as F

import tightrope as tr


def flop(run: object) -> int:
    return work.count(run)["flop"]  # type: ignore[arg-type]


def test_products() -> None:
    a, b, batch = torch.ones(3, 5), torch.ones(5, 7), torch.ones(2, 3, 5)
    assert flop(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flop(lambda: torch.addmm(torch.ones(7), a, b)) == 2 * 3 * 5 * 7
    assert flop(lambda: torch.bmm(batch, b.expand(2, 5, 7))) == 2 * 2 * 3 * 5 * 7
    assert flop(lambda: torch.einsum("bij,jk->bik", batch, b)) == 2 * 2 * 3 * 5 * 7
    assert flop(lambda: a.mul(2).relu().sum()) == 0


def test_convolutions_forward_and_backward() -> None:
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    weight = torch.ones(4, 3, 3, 3, requires_grad=True)
    forward = 2 * 2 * 4 * (8 * 8) * (3 * 3 * 3)
    assert flop(lambda: F.conv2d(x, weight, padding=1)) == forward
    step = flop(lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), (x, weight)))
    assert step == 3 * forward
    only_weight = flop(lambda: torch.autograd.grad(F.conv2d(x.detach(), weight, padding=1).sum(), weight))
    assert only_weight == 2 * forward


def test_transposed_convolution_costs_what_its_transpose_does() -> None:
    x, weight = torch.ones(2, 4, 5, 5), torch.ones(4, 3, 3, 3)
    assert flop(lambda: F.conv_transpose2d(x, weight)) == 2 * 2 * (5 * 5) * 4 * (3 * 3 * 3)


def test_operations_inside_an_autograd_function_count() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(a, b)  # type: ignore[attr-defined]
            return a @ b

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            a, b = ctx.saved_tensors  # type: ignore[attr-defined]
            return grad @ b.T, a.T @ grad

    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert flop(lambda: torch.autograd.grad(Product.apply(a, b).sum(), (a, b))) == 3 * (2 * 3 * 5 * 7)


@pytest.mark.parametrize(
    ("run", "passes"),
    [
        (lambda x: x + x, 2),
        (lambda x: x.mul_(2), 2),
        (lambda x: torch.empty_like(x).copy_(x), 2),
        (lambda x: x.fill_(1.0), 1),
        (lambda x: x.view(2, -1).T.detach(), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.new_zeros(()).expand(64) + x, 2 + 1 / 64),
    ],
)
def test_bytes(run: object, passes: float) -> None:
    x = torch.ones(64)
    found = work.count(lambda: run(x))["bytes"]  # type: ignore[operator]
    assert found == pytest.approx(passes * 256, abs=8)


def test_a_training_step_costs_about_three_forward_passes() -> None:
    made = problem({"network": "cnn3", "width": 4, "device": "cpu"}, 2)
    forward = flop(lambda: made.module(made.box.lower))
    step = flop(training_step(made, "ibp"))
    assert isinstance(made.box, tr.Box)
    assert 2 * 2 * forward < step < 2 * 3.5 * forward  # centre and radius, each forward and backward
