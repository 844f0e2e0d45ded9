"""What a layer publishes about itself. Relaxations are written against these facts and never against layer types.

One axis law: activations are (batch, *shape), coefficients of linear bounds (batch, rows, *shape), see
:mod:`tightrope.core.coef`. Ops are frozen and hold no tensors, only keys into
``params``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tightrope.core.bounds import Interval, Lines, Params, Shape
from tightrope.core.coef import Coef
from tightrope.core.frame import Window

POINT = Window((1, 1), (1, 1), (0, 0))
"""A map of every position by itself."""


class Tilt(NamedTuple):
    """Which of the valid lines to take: a number in [0, 1] per neuron and side, see :meth:`ElementwiseOp.envelope`.

    Attributes:
        lower: of the lower lines.
        upper: of the upper lines; None for 1 everywhere.
        settled: whether it already gives f itself where f is one line.
    """

    lower: Tensor
    upper: Tensor | None = None
    settled: bool = False


class Statistics(NamedTuple):
    """Batch statistics that a layer normalises with.

    Attributes:
        mean: key of the running mean.
        var: key of the running (unbiased) variance.
        momentum: share of the newest batch in both.
    """

    mean: str
    var: str
    momentum: float


class Op(ABC):
    """A layer: evaluation, shapes, and where it comes from.

    Attributes:
        kind: which of the two families of facts it publishes.
        modules: the ``torch.nn`` classes it is converted from.
    """

    kind: ClassVar[Literal["affine", "elementwise"]]
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()

    @property
    def statistics(self) -> Statistics | None:
        """Batch statistics that the layer normalises with, if any."""
        return None

    @abstractmethod
    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        """The layer's value, (batch, *shape)."""

    @abstractmethod
    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of one sample's output from those of the inputs."""


class AffineOp(Op):
    """y = A x + b.

    Attributes:
        monomial: every output depends on one input at most and every input feeds one output at most (scaling,
            shifting, reshaping). Interval bounds stay exact through any number of these around one general map.
    """

    kind = "affine"
    monomial: ClassVar[bool] = False

    @abstractmethod
    def roundings(self, params: Params) -> int:
        """How many rounding errors an entry of A x or of A^T coef gathers at most; 0 where both are exact.

        A sum of n products has n, each relative to the sum of absolute values; those of computed entries of A count.
        """

    def bias_abs(self, params: Params) -> Tensor | None:
        """The sum of absolute values that b is computed from, abs(b) where it is stored."""
        bias = self.bias(params)
        return None if bias is None else bias.abs()

    @property
    def window(self) -> Window | None:
        """Of images: how it moves over them, :data:`POINT` if outputs depend on their own position; None for others."""
        return None

    @abstractmethod
    def linear(self, params: Params, *inputs: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def linear_abs(self, params: Params, *radii: Tensor) -> Tensor:
        """abs(A) r, for radii r >= 0."""

    @abstractmethod
    def adjoint(self, params: Params, coef: Coef) -> tuple[Coef, ...]:
        """A^T coef for every input: rows over the output shape become rows over each input shape."""

    @abstractmethod
    def bias(self, params: Params) -> Tensor | None:
        """b, broadcastable to the output shape, or None for 0."""

    def forward(self, params: Params, *inputs: Tensor) -> Tensor:
        value, bias = self.linear(params, *inputs), self.bias(params)
        return value if bias is None else value + bias


class JoinOp(AffineOp):
    """An affine op of inputs that hang together, so that it knows more of its range than interval arithmetic."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Its range, from those of its inputs; exact, or rounded outwards."""


class ElementwiseOp(Op):
    """y_i = f(x_i) for an f that never falls, with lines that bound it on an interval.

    Attributes:
        breakpoints: where f is not differentiable.
        roundings: error of a computed value, in units of roundoff of the value; 0 where it is exact.
    """

    kind = "elementwise"
    breakpoints: ClassVar[tuple[float, ...]] = ()
    roundings: ClassVar[int]

    @abstractmethod
    def interval(self, pre: Interval) -> Interval:
        """The range of f over the interval."""

    @abstractmethod
    def stable(self, pre: Interval) -> Tensor:
        """Where f is a single line on the interval (bool). Must be False where a bound is NaN."""

    @abstractmethod
    def envelope(self, pre: Interval, tilt: Tilt) -> Lines:
        """Lines that bound f from below and above on the interval, valid for every tilt in [0, 1].

        Where f is stable both are f itself, whatever the tilt.
        """

    @abstractmethod
    def outward(self, pre: Interval, lines: Lines) -> Lines:
        """Lines of :meth:`envelope`, or of constants that bound it, moved so that they hold for all real numbers.

        They bound f on the interval, both taken as exact, however the slopes were rounded.
        """

    @abstractmethod
    def chord(self, pre: Interval) -> Tilt:
        """The tilt whose two lines have the slope of the chord (parallel lines)."""

    @abstractmethod
    def minimum_area(self, pre: Interval) -> Tilt:
        """The tilt with the smallest area between the line and f, side by side."""

    def soft(self, pre: Interval) -> Tilt:
        """:meth:`minimum_area` without its jumps, as the two lines that it jumps between are mixed around them."""
        return self.minimum_area(pre)

    def zero(self, pre: Interval) -> Tilt:
        """The flattest lower line, and the upper line of least area."""
        return Tilt(torch.zeros_like(pre.lower), self.minimum_area(pre).upper)

    def output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]


def constant(params: Params, key: str | float, dims: int) -> Tensor | float:
    """A constant by value or key, shaped to broadcast against samples of ``dims`` dimensions."""
    if not isinstance(key, str):
        return key
    value = params[key]
    return value.reshape(value.shape[1:]) if value.ndim > dims else value
