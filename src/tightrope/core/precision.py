"""The precision of float32 products, a setting of the whole process: training may lower it, certificates never do.

Float64 is not touched by any of these settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")
Precision = Literal["highest", "high", "medium"]
"""As in ``torch.set_float32_matmul_precision``: float32, at least TF32, at least bfloat16, where the device has it."""

# Everything that torch lets choose on its own; what is not set here would follow settings further up.
_backends: Any = torch.backends
_PRODUCTS = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.rnn,
)


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Inside, products of float32 matrices and convolutions have this precision; the old settings come back after it.

    Example:
        >>> with float32_products("medium"):
        ...     torch.get_float32_matmul_precision()
        'medium'
    """
    matmul = _settled(torch.get_float32_matmul_precision)
    cudnn = _settled(lambda: torch.backends.cudnn.allow_tf32)
    each = [product.fp32_precision for product in _PRODUCTS]
    try:
        _set(precision, precision != "highest")
        if precision == "highest":
            _set_each(["ieee"] * len(each))
        yield
    finally:
        _set(matmul, cudnn)
        _set_each(each)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, float32 is float32: no TF32, no bfloat16, no autocast. Also a decorator.

    Everything that makes a certificate runs inside of it, whatever the process is set to.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(float32_products("highest"))
        yield


@contextmanager
def direct_convolutions() -> Iterator[None]:
    """Inside, convolutions are sums of products: no FFT, no Winograd's algorithm. Bounds of rounding errors assume it.

    cuDNN and NNPACK, which choose for themselves, are off; what torch has instead is im2col and a matrix product, and
    oneDNN (float32 on a CPU), of which torch asks for the direct algorithm.
    """
    cudnn, nnpack = _backends.cudnn.enabled, torch._C._get_nnpack_enabled()
    try:
        _backends.cudnn.enabled = False
        torch._C._set_nnpack_enabled(False)
        yield
    finally:
        _backends.cudnn.enabled = cudnn
        torch._C._set_nnpack_enabled(nnpack)


def _settled(read: Callable[[], T]) -> T | None:
    """A setting, or None where torch refuses to name one because its parts differ."""
    try:
        return read()
    except RuntimeError:
        return None


def _set(matmul: str | None, cudnn: bool | None) -> None:
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = cudnn


def _set_each(values: list[str]) -> None:
    for product, value in zip(_PRODUCTS, values, strict=True):
        product.fp32_precision = value
