"""What a step asks of the machine: floating-point operations and bytes, counted op by op as they are dispatched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Record = dict[str, Any]


def count(run: Callable[[], object]) -> Record:
    """Count one step.

    Returns:
        ``flop``: of matrix products and convolutions, forward and backward, a multiplication and an addition counted
        as two; elementwise operations are not counted. ``bytes``: read and written by all operations, as if nothing
        stayed in a cache between two of them; views are free.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> count(lambda: a @ b)
        {'flop': 48, 'bytes': 104}
    """
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        run()
    return {"flop": flops.get_total_flops(), "bytes": traffic.bytes}


# Operations that do not read their first argument, and those that only reserve memory.
_NOT_READING = {"copy_", "fill_", "zero_", "normal_", "new_zeros", "new_ones", "new_full"}
_NOT_READING |= {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
_RESERVING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class _Traffic(TorchDispatchMode):
    """Sums the sizes of what operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes += _bytes(func._schema, tree_leaves((args, kwargs)), tree_leaves(result))
        return result


def _bytes(schema: Any, arguments: Sequence[object], results: Sequence[object]) -> int:
    read, written = _sizes(arguments), _sizes(results)
    is_view = not schema.is_mutable and written.keys() <= read.keys()
    name = schema.name.removeprefix("aten::")
    if is_view or name in _RESERVING:
        return 0
    if name in _NOT_READING:
        read = _sizes(arguments[1:])
    return sum(read.values()) + sum(written.values())


def _sizes(leaves: Iterable[object]) -> dict[int, int]:
    """Bytes of every tensor by its storage; an expanded one is as large as what it holds."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return {t.untyped_storage().data_ptr(): min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors}
