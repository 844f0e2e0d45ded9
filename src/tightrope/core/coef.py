"""Coefficients of linear bounds as small linear operators: dense, one window per output position, or two factors.

A row of a bound is ``coef . value`` for the value of one node, (*shape). Every form holds the rows of a whole batch;
the batch axis has size 1 while the rows do not depend on the sample. Rows that belong to the positions of a convolution
only touch a window of the earlier layer: :class:`Patches` stores that window alone, so that back-substitution through
convolutions is a few large matrix products instead of convolutions of mostly zeros. :class:`Factored` is what becomes
of a convolution's own rows behind one non-linear op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.core.bounds import Lines, Shape
from tightrope.core.frame import Frame, Window
from tightrope.core.lowering import flat_rows, image_layout, matmul, row_dot

Transpose = Callable[[Tensor], Tensor]
"""A map's adjoint without padding, (n, channels, *kernel) -> (n, input channels, *larger)."""


@dataclass(frozen=True)
class Dense:
    """Every coefficient stored.

    Attributes:
        value: (batch or 1, rows, *shape).
    """

    value: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.value.shape[1]

    def dense(self) -> Dense:
        """Itself."""
        return self

    def select(self, rows: Tensor) -> Dense:
        """Some of the rows, others for every sample, (batch, chosen)."""
        return Dense(_of_samples(self.value, rows))

    def times(self, factor: Tensor | float) -> Dense:
        """Coefficients of x, from those of ``factor * x``; the factor broadcasts against the shape."""
        return Dense(self.value * factor)

    def plus(self, other: Coef) -> Dense:
        """The sum."""
        return Dense(self.value + other.dense().value)

    def dot(self, value: Tensor) -> Tensor:
        """(batch, *shape) -> (batch, rows)."""
        return _dot(self.value, value)

    def dot_abs(self, radius: Tensor) -> Tensor:
        """|coef| . radius, (batch, *shape) -> (batch, rows)."""
        return _dot(self.value.abs(), radius)

    def spread(self, slack: Tensor) -> Tensor:
        """The sum of absolute values from which |coef| . slack is computed in this form: at least that."""
        return self.dot_abs(slack)

    def through(self, lines: Lines) -> tuple[Dense, Tensor]:
        """Upper bounds in terms of the input of a non-linear op: the new coefficients and the constant.

        Positive coefficients take the upper line, negative ones the lower.
        """
        value = _images(self.value)
        positive, gap = value.relu(), lines.upper_slope - lines.lower_slope
        pulled = torch.addcmul(value * lines.lower_slope[:, None], positive, gap[:, None])
        constant = _dot(positive, lines.upper_bias)
        if lines.lower_bias is not None:
            constant = constant + _dot(value - positive, lines.lower_bias)
        return Dense(pulled), constant


@dataclass(frozen=True)
class Patches:
    """A window of coefficients for every kind of row and position of a grid.

    Entries outside the node mean nothing until :meth:`masked` has made them 0. Rows count as (kinds, *grid) in
    row-major order.

    Attributes:
        value: (batch or 1, positions or 1, kinds, entries of a window).
        frame: where the windows lie.
        clean: whether entries outside the node are 0.
        mirrored: whether the second half of the kinds is minus the first.
        at: positions of the rows, (batch, rows), where they were chosen: these are then the positions of ``value``,
            each with one kind.
    """

    value: Tensor
    frame: Frame
    clean: bool
    mirrored: bool = False
    at: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.value.shape[2] * (self.frame.positions if self.at is None else self.at.shape[1])

    def dense(self) -> Dense:
        """Every coefficient stored, zeros included."""
        batch, _, kinds, entries = self.value.shape
        index = self._chosen(self.frame.index(self.value.device).reshape(1, -1, entries))[:, :, None]
        positions, size = index.shape[1], math.prod(self.frame.shape)
        value = self.value.expand(batch, positions, kinds, entries)
        full = self.value.new_zeros(batch, positions, kinds, size + 1).scatter(3, index.expand_as(value), value)
        rows = full[..., :-1].transpose(1, 2)  # without the entry that took what lies outside
        return Dense(rows.reshape(batch, kinds * positions, *self.frame.shape))

    def masked(self) -> Patches:
        """The same rows with entries outside the node set to 0."""
        if self.clean:
            return self
        inside = self._windows(self.value.new_ones(1, *self.frame.shape))
        return replace(self, value=torch.where(inside[:, :, None] > 0, self.value, 0.0), clean=True)

    def select(self, rows: Tensor) -> Patches:
        """See :meth:`Dense.select`; before that all rows of a kind share a window's coefficients, or have their own."""
        kind, at = rows // self.frame.positions, rows % self.frame.positions
        value = self.value.transpose(1, 2)  # kinds first, as rows count
        if value.shape[2] > 1:
            value, kind = value.flatten(1, 2)[:, :, None], rows
        return Patches(_of_samples(value, kind), self.frame, self.clean, at=at)

    def times(self, factor: Tensor | float) -> Patches:
        """See :meth:`Dense.times`."""
        return replace(self, value=self.value * self._factor(factor))

    def plus(self, other: Coef) -> Coef:
        """The sum; dense where the windows differ."""
        other = other.patches() if isinstance(other, Factored) else other
        if isinstance(other, Patches) and self.frame == other.frame and _equal(self.at, other.at):
            clean, mirrored = self.clean and other.clean, self.mirrored and other.mirrored
            return Patches(self.value + other.value, self.frame, clean, mirrored, self.at)
        return Dense(self.dense().value + other.dense().value)

    def dot(self, value: Tensor) -> Tensor:
        """See :meth:`Dense.dot`."""
        return self._dot(self.value, self._windows(value))

    def dot_abs(self, radius: Tensor) -> Tensor:
        """See :meth:`Dense.dot_abs`."""
        return self._dot(self.value.abs(), self._windows(radius))

    def spread(self, slack: Tensor) -> Tensor:
        """See :meth:`Dense.spread`."""
        return self.dot_abs(slack)

    def through(self, lines: Lines) -> tuple[Patches | Factored, Tensor]:
        """See :meth:`Dense.through`. The slopes outside the node are 0, which masks."""
        lower, upper = self._windows(lines.lower_slope), self._windows(lines.upper_slope)
        positive = self.value.relu()
        constant = self._dot(positive, self._windows(lines.upper_bias))
        if lines.lower_bias is not None:
            constant = constant + self._dot(self.value - positive, self._windows(lines.lower_bias))
        if self.mirrored and self.value.shape[:2] == (1, 1):
            weight = self.value[0, 0, : self.value.shape[2] // 2]
            return Factored(weight, (upper + lower) / 2, (upper - lower) / 2, self.frame), constant
        pulled = torch.addcmul(self.value * lower[:, :, None], positive, (upper - lower)[:, :, None])
        return replace(self, value=pulled, clean=True, mirrored=False), constant

    def pull(self, window: Window, shape: Shape, transpose: Transpose) -> Patches:
        """Coefficients of the input of a convolution-like map, from those of its output: one matrix product.

        Args:
            window: of the map.
            shape: of its input.
            transpose: see :data:`Transpose`.
        """
        matrix = _composed(self.frame, self.value, transpose)
        frame = self.frame.behind(window, shape)
        return replace(self, value=matmul(self.masked().value, matrix), frame=frame, clean=False)

    def _dot(self, coef: Tensor, windows: Tensor) -> Tensor:
        """(batch or 1, positions or 1, kinds, entries) times (batch or 1, positions, entries) -> (batch, rows)."""
        one = coef.shape[:2] == (1, 1)
        found = matmul(windows, coef[0, 0].T) if one else (coef * windows[:, :, None]).sum(-1)
        return found.transpose(1, 2).flatten(1)

    def _windows(self, value: Tensor) -> Tensor:
        """See :meth:`Frame.windows`, at the rows' positions."""
        return self._chosen(self.frame.windows(value))

    def _chosen(self, windows: Tensor) -> Tensor:
        """(batch or 1, positions, entries) at the rows' positions."""
        return windows if self.at is None else _of_samples(windows, self.at)

    def _factor(self, factor: Tensor | float) -> Tensor | float:
        found = _in_windows(factor, self.frame)
        varies = isinstance(found, Tensor) and found.ndim == 4
        return self._chosen(found[:, :, 0])[:, :, None] if isinstance(found, Tensor) and varies else found


@dataclass(frozen=True)
class Factored:
    """The rows W and -W of a convolution behind one non-linear op, as factors.

    The rows of position p are ``(+-W[k] * middle[p] + |W[k]| * gap[p]) @ matrix``. Slopes times a matrix of products of
    weights needs no pass over a coefficient for every kind, position and entry, and the two signs share their products.

    Attributes:
        weight: W, (kinds, entries).
        middle, gap: half the sum and half the difference of upper and lower slopes, (batch, positions, entries); 0
            outside the node.
        source: the frame of these entries.
        matrix: (entries, entries of ``end``) of the convolution below, if the rows were pulled through it.
        window: of that convolution.
        end: the frame after it.
    """

    weight: Tensor
    middle: Tensor
    gap: Tensor
    source: Frame
    matrix: Tensor | None = None
    window: Window | None = None
    end: Frame | None = None

    @property
    def frame(self) -> Frame:
        """Where the windows lie."""
        return self.end or self.source

    @property
    def rows(self) -> int:
        """Number of rows."""
        return 2 * self.weight.shape[0] * self.frame.positions

    def dense(self) -> Dense:
        """Every coefficient stored, zeros included."""
        return self.patches().dense()

    def patches(self) -> Patches:
        """Multiplied out."""
        if self.end is None:
            same, other = self.weight * self.middle[:, :, None], self.weight.abs() * self.gap[:, :, None]
            return Patches(torch.cat([other + same, other - same], 2), self.source, clean=True)
        plus, minus = [], []
        for source, target in self._bands():
            same, other = self._products(self.middle, self.gap, source, target, kinds_last=False)
            plus.append(other + same)
            minus.append(other - same)
        value = torch.cat([torch.cat(plus, 3), torch.cat(minus, 3)], 1)  # (batch * positions, kinds, *window)
        return Patches(value.reshape(*self.middle.shape[:2], value.shape[1], -1), self.end, clean=False)

    def select(self, rows: Tensor) -> Patches:
        """See :meth:`Dense.select`."""
        return self.patches().select(rows)

    def times(self, factor: Tensor | float) -> Coef:
        """See :meth:`Dense.times`."""
        if self.matrix is not None:
            return self.patches().times(factor)
        windows = _in_windows(factor, self.source)
        windows = windows[:, :, 0] if isinstance(windows, Tensor) and windows.ndim == 4 else windows
        return replace(self, middle=self.middle * windows, gap=self.gap * windows)

    def plus(self, other: Coef) -> Coef:
        """See :meth:`Patches.plus`."""
        return self.patches().plus(other.patches() if isinstance(other, Factored) else other)

    def dot(self, value: Tensor) -> Tensor:
        """See :meth:`Dense.dot`."""
        windows = self.frame.windows(value)
        if self.matrix is not None:
            windows = matmul(windows, self.matrix.T)
        same = matmul(windows * self.middle, self.weight.T)
        other = matmul(windows * self.gap, self.weight.abs().T)
        return _rows(other + same, other - same)

    def dot_abs(self, radius: Tensor) -> Tensor:
        """See :meth:`Dense.dot_abs`; band by band, so that no product is larger than a cache."""
        if self.matrix is None:
            return self.patches().dot_abs(radius)
        assert self.end is not None
        batch, positions = max(radius.shape[0], self.middle.shape[0]), self.middle.shape[1]
        windows = self.end.windows(radius).expand(batch, -1, -1)
        windows = windows.reshape(batch * positions, self.end.shape[0], *self.end.kernel)
        middle, gap = (s.expand(batch, -1, -1).reshape(batch * positions, -1) for s in (self.middle, self.gap))
        plus = minus = self.weight.new_zeros(())
        for source, target in self._bands():
            inside = windows[:, :, target].reshape(batch * positions, 1, -1)
            same, other = self._products(middle, gap, source, target, kinds_last=True)
            plus = plus + torch.bmm(inside, (other + same).abs())
            minus = minus + torch.bmm(inside, (other - same).abs())
        return _rows(plus.reshape(batch, positions, -1), minus.reshape(batch, positions, -1))

    def spread(self, slack: Tensor) -> Tensor:
        """See :meth:`Dense.spread`. No coefficient is multiplied out for it, so that it costs next to nothing."""
        windows = self.frame.windows(slack)
        if self.matrix is not None:
            windows = matmul(windows, self.matrix.abs().T)
        found = matmul(windows * (self.middle.abs() + self.gap.abs()), self.weight.abs().T)
        return _rows(found, found)

    def through(self, lines: Lines) -> tuple[Patches | Factored, Tensor]:
        """See :meth:`Dense.through`."""
        return self.patches().through(lines)

    def pull(self, window: Window, shape: Shape, transpose: Transpose) -> Patches | Factored:
        """See :meth:`Patches.pull`."""
        if self.matrix is not None:
            return self.patches().pull(window, shape, transpose)
        matrix = _composed(self.source, self.weight, transpose)
        return replace(self, matrix=matrix, window=window, end=self.source.behind(window, shape))

    def _bands(self) -> Iterator[tuple[slice, slice]]:
        """Rows of the windows of ``source`` that reach a band of rows of those of ``end``; others multiply zeros."""
        assert self.window is not None
        assert self.end is not None
        rows, height = self.source.kernel[0], self.end.kernel[0]
        stride, extent = self.window.stride[0], self.window.extent[0]
        size = -(-height // rows)
        for first in range(0, height, size):
            last = min(first + size, height)
            start, stop = max(0, -(-(first - extent + 1) // stride)), min(rows, (last - 1) // stride + 1)
            yield slice(start, stop), slice(first, last)

    def _products(
        self, middle: Tensor, gap: Tensor, source: slice, target: slice, *, kinds_last: bool
    ) -> tuple[Tensor, Tensor]:
        """``W * middle @ matrix`` and ``|W| * gap @ matrix`` for a band of the windows of ``end``.

        Returns:
            Both (batch * positions, kinds, *band); or (batch * positions, entries, kinds).
        """
        assert self.matrix is not None
        assert self.end is not None
        kinds, (channels, kernel) = self.weight.shape[0], (self.source.shape[0], self.source.kernel)
        weight = self.weight.T.reshape(channels, *kernel, kinds)[:, source].reshape(-1, kinds)
        matrix = self.matrix.reshape(channels, *kernel, self.end.shape[0], *self.end.kernel)[:, source, :, :, target]
        window = matrix.shape[3:]
        matrix = matrix.reshape(weight.shape[0], -1)

        def product(weight: Tensor, slope: Tensor) -> Tensor:
            slope = slope.reshape(-1, channels, *kernel)[:, :, source].flatten(1)
            if kinds_last:
                columns = weight[:, None] * matrix[:, :, None]
                return matmul(slope, columns.flatten(1)).reshape(slope.shape[0], -1, kinds)
            columns = weight[:, :, None] * matrix[:, None]
            return matmul(slope, columns.flatten(1)).reshape(slope.shape[0], kinds, *window)

        return product(weight, middle), product(weight.abs(), gap)


Coef = Dense | Patches | Factored


def identity(shape: Shape, first: int, last: int, like: Tensor) -> Coef:
    """Rows +x and then -x of a node, for its entries from ``first`` to before ``last`` of the first axis."""
    return unit_rows(shape, torch.arange(first, last, device=like.device), like)


def unit_rows(shape: Shape, entries: Tensor, like: Tensor) -> Coef:
    """Rows +x and then -x of a node, for some entries of its first axis."""
    each = 1 if len(shape) == 3 else math.prod(shape[1:])  # windows move over an image by themselves
    index = (entries[:, None] * each + torch.arange(each, device=like.device)).flatten()
    rows = F.one_hot(index, shape[0] * each).to(like.dtype)
    both = torch.cat([rows, -rows])[None]
    if len(shape) == 3:
        frame = Frame(shape, (1, 1), (shape[1], shape[2]), (1, 1), (0, 0))
        return Patches(both[:, None], frame, clean=True, mirrored=True)
    return Dense(both.reshape(1, -1, *shape))


def _composed(frame: Frame, like: Tensor, transpose: Transpose) -> Tensor:
    """The matrix of a convolution's adjoint on windows, (entries, entries of the larger windows)."""
    eye = torch.eye(frame.entries, dtype=like.dtype, device=like.device)
    return transpose(eye.reshape(frame.entries, frame.shape[0], *frame.kernel)).reshape(frame.entries, -1)


def _in_windows(factor: Tensor | float, frame: Frame) -> Tensor | float:
    """A factor of the node as one of its windows, (entries,) or (1, positions, 1, entries)."""
    if not isinstance(factor, Tensor) or factor.ndim == 0:
        return factor
    if factor.shape[-2:] == (1, 1):  # per channel: the same in every window
        return factor.expand(frame.shape[0], *frame.kernel).flatten()
    return frame.windows(factor.expand(frame.shape)[None])[:, :, None]


def _rows(plus: Tensor, minus: Tensor) -> Tensor:
    """Twice (batch, positions, kinds) -> (batch, rows)."""
    return torch.cat([plus, minus], 2).transpose(1, 2).flatten(1)


def _images(value: Tensor) -> Tensor:
    """(batch, rows, *shape), of images in their fastest layout."""
    return image_layout(value.flatten(0, 1)).unflatten(0, value.shape[:2]) if value.ndim == 5 else value


def _dot(coef: Tensor, x: Tensor) -> Tensor:
    """(batch or 1, rows, *shape) times (batch or 1, *shape) -> (batch or 1, rows)."""
    coef, x = flat_rows(coef, x)
    if coef.shape[0] == 1:  # one matrix for the whole batch
        return x @ coef.squeeze(0).T  # indexing it would fill a tensor with zeros in the backward pass
    return row_dot(coef, x)


def _of_samples(values: Tensor, index: Tensor) -> Tensor:
    """(batch or 1, n, ...) at an index of every sample, (batch, chosen) -> (batch, chosen, ...): whole rows at once."""
    batch, count = values.shape[:2]
    if batch > 1:
        index = index + count * torch.arange(batch, device=index.device)[:, None]
    return values.flatten(0, 1).index_select(0, index.flatten()).reshape(*index.shape, *values.shape[2:])


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether rows were chosen alike."""
    return first is second or (first is not None and second is not None and torch.equal(first, second))
