"""Compiled losses: the same numbers, up to rounding, from fewer and larger kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from tightrope.core.bounds import Metrics, Params
from tightrope.core.protocols import LossFn
from tightrope.errors import InputError

StepLoss = Callable[..., tuple[Tensor, Metrics]]
"""A loss of the params and of what changes from step to step: ``loss(params, *inputs)``, pure."""

Backend = str | Callable[..., Any]
"""As ``torch.compile`` takes it."""

INDUCTOR = "inductor"
"""The backend that makes kernels. Those without one (``eager``, ``aot_eager``) trace in the same way, much faster."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """``compiled(*inputs)`` is the loss at those inputs, compiled: one graph without breaks.

    The inputs of the step are inputs of the graph, so that new values cost nothing. A new shape (the last, smaller
    batch of an epoch, the last chunk of members) costs one more compilation.

    Args:
        function: the loss of params and inputs.
        backend: of ``torch.compile``.

    Example:
        >>> step_loss = Compiled(lambda params, x: ((params["w"] * x).sum(), {}), backend="eager")
        >>> loss = step_loss(torch.tensor([1.0, 2.0]))
        >>> loss({"w": torch.tensor([3.0, 4.0])})[0]
        tensor(11.)
    """

    function: StepLoss
    backend: Backend = INDUCTOR
    _versions: dict[int | None, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, *inputs: Any) -> CompiledLoss:
        """The loss at these inputs: any nesting of tuples and mappings of tensors."""
        return CompiledLoss(self, inputs)

    def version(self, members: int | None) -> Callable[..., Any]:
        """The compiled function ``(own, shared, *inputs)`` of one weight vector, or of so many at once.

        One for each number of members, as torch allows one compiled function a few shapes only.
        """
        if members not in self._versions:
            function = self.function

            def of_one(own: Params, shared: Params, *inputs: Any) -> Any:
                return function({**shared, **own}, *inputs)

            def of_many(own: Params, shared: Params, *inputs: Any) -> Any:
                return torch.func.vmap(lambda each: function({**shared, **each}, *inputs))(own)

            chosen = of_one if members is None else of_many
            self._versions[members] = torch.compile(
                _with_own_code(chosen), fullgraph=True, dynamic=False, backend=self.backend
            )
        return self._versions[members]


@dataclass(frozen=True, eq=False)
class CompiledLoss:
    """A compiled loss at fixed inputs. It is a :data:`tightrope.core.protocols.LossFn`."""

    compiled: Compiled
    inputs: tuple[Any, ...]

    def __call__(self, params: Params) -> tuple[Tensor, Metrics]:
        """The loss at one weight vector."""
        value: tuple[Tensor, Metrics] = self.compiled.version(None)(params, {}, *self.inputs)
        return value

    def at_members(self, own: Params, shared: Params) -> tuple[Tensor, Metrics]:
        """See :func:`at_members`."""
        members = next(iter(own.values())).shape[0]
        values: tuple[Tensor, Metrics] = self.compiled.version(members)(own, shared, *self.inputs)
        return values


def at_members(loss: LossFn, own: Params, shared: Params) -> tuple[Tensor, Metrics]:
    """``vmap`` of the loss over weight vectors: each has its own part, (members, *shape), and the shared one.

    A compiled loss is mapped inside the compiled function: from outside, torch cannot.

    Returns:
        Losses (members,) and metrics of (members,).
    """
    if isinstance(loss, CompiledLoss):
        return loss.at_members(own, shared)

    def of_member(each: Params) -> tuple[Tensor, Metrics]:
        return loss({**shared, **each})

    values: tuple[Tensor, Metrics] = torch.func.vmap(of_member)(own)
    return values


def check_compiler(device: torch.device, backend: Backend = INDUCTOR) -> None:
    """Compile one addition, to find out before any work starts whether compiling works here.

    Raises:
        InputError: it does not; the message says what is missing.

    Cost: about 3 seconds the first time on a machine, then less.
    """
    try:
        torch.compile(_with_own_code(_plus_one), backend=backend)(torch.zeros(2, device=device))
    except Exception as error:  # of the compiler, the linker, the operating system ...
        needed = "a C++ compiler and Python's headers (on Debian: apt install g++ python3-dev; or set CXX)"
        if device.type == "cuda":
            needed = "Triton and a C compiler (on Debian: apt install gcc)"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"train.compile cannot be used here: torch.compile fails on {device.type} ({reason}). It needs {needed}. "
            "Install that, or leave train.compile out: training does the same without it."
        ) from error


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


def _with_own_code(function: Callable[..., Any]) -> FunctionType:
    """A copy with a code object of its own.

    torch keeps and counts what it compiled by code object: otherwise the ninth run in a process would hit its limit.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
