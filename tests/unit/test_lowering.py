"""Other kernels, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core import lowering


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((value * normal(*value.shape, seed=9, dtype=value.dtype)).sum(), inputs)


def assert_same(one: Tensor, two: Tensor, *inputs: Tensor) -> None:
    assert one.shape == two.shape
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    for first, second in zip(gradients(one, *inputs), gradients(two, *inputs), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (300, 64), (2, 7, 300, 96)], ids=str)
def test_matmul(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "_LARGE", 1)
    a = normal(*shape, dtype=dtype).requires_grad_()
    b = normal(shape[-1], 33, seed=1, dtype=dtype).requires_grad_()
    assert_same(lowering.matmul(a, b), a @ b, a, b)
    rows = a.detach().reshape(-1, shape[-1])
    members = torch.stack([b.detach(), -b.detach()])
    mapped = torch.func.vmap(lambda member: lowering.matmul(rows, member))(members)
    torch.testing.assert_close(mapped, rows @ members, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out", [1, 3, 9])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("kernel", [(1, 1), (4, 4), (5, 3), (2, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conv_transpose(out: int, stride: tuple[int, int], kernel: tuple[int, int], dtype: torch.dtype) -> None:
    """Of every padding and output padding that a convolution with such a window can have."""
    x, weight = normal(2, 4, 3, 5, dtype=dtype).requires_grad_(), normal(4, out, *kernel, dtype=dtype).requires_grad_()
    for padding in ((0, 0), (kernel[0] // 2, (kernel[1] - 1) // 2)):
        for more in ((0, 0), (stride[0] - 1, stride[1] - 1)):
            found = lowering.conv_transpose(x, weight, stride, padding, more, 1, (1, 1))
            assert_same(found, F.conv_transpose2d(x, weight, None, stride, padding, more), x, weight)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_image_layout_changes_no_entry(channels: int, dtype: torch.dtype) -> None:
    x = normal(2, channels, 4, 5, dtype=dtype).requires_grad_()
    found = lowering.image_layout(x)
    assert torch.equal(found, x)
    assert_same(found, x, x)
    assert lowering.image_layout(found).data_ptr() == found.data_ptr()


@pytest.mark.parametrize("innermost", [False, True])
def test_row_dot(innermost: bool) -> None:
    """Its derivative is its own code; second arguments of one sample count for all."""
    rows = normal(3, 4, 2, 5, 6, dtype=torch.float64)
    rows = rows.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if innermost else rows
    for batch in (1, 3):
        x = normal(batch, 2, 5, 6, seed=1, dtype=torch.float64)
        flat, vector = lowering.flat_rows(rows, x)
        torch.testing.assert_close(lowering.row_dot(flat, vector), (rows * x[:, None]).flatten(2).sum(-1))
        assert torch.autograd.gradcheck(lowering.row_dot, (flat.requires_grad_(), vector.requires_grad_()))


def test_what_is_kept_depends_on_size_alone() -> None:
    device = torch.device("cpu")
    assert lowering.keeps(1, device)
    assert not lowering.keeps(2**40, device)
    assert lowering.chunk_entries(device) > 0
