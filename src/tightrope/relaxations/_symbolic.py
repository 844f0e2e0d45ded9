"""Symbolic intervals: linear bounds of every node in the inputs, propagated forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from tightrope.core.bounds import Bounds, Interval, Lines, Params
from tightrope.core.box import Box
from tightrope.core.network import INPUT, Network
from tightrope.core.op import AffineOp, ElementwiseOp
from tightrope.core.precision import direct_convolutions
from tightrope.core.rounding import above, below, gamma, tiny
from tightrope.core.spec import Spec
from tightrope.relaxations import _slopes
from tightrope.relaxations._backward import backward_bounds
from tightrope.relaxations._interval import forward_intervals


@dataclass(frozen=True)
class _Forms:
    """Of a node z: ``(C - R)(t) <= z <= (C + R)(t)`` for the inputs ``centre + radius * t``, all t in [-1, 1]^n.

    A form is its constant and then its n coefficients, along the second axis: (batch, 1 + n, *shape). What an operation
    loses to rounding, at most, is added to the constant of R.

    Attributes:
        centre, half: C and R.
    """

    centre: Tensor
    half: Tensor

    @cached_property
    def size(self) -> Tensor:
        """What neither form exceeds in absolute value, up to rounding, (batch, *shape)."""
        return (self.centre.abs() + self.half.abs()).sum(1)

    def interval(self) -> Interval:
        """The range of both."""
        lower, upper = self.centre - self.half, self.centre + self.half
        error = _share(self) * self.size + tiny(lower.dtype)
        ends = lower[:, 0] - lower[:, 1:].abs().sum(1), upper[:, 0] + upper[:, 1:].abs().sum(1)
        return Interval(below(ends[0] - error), above(ends[1] + error))

    def wider(self, error: Tensor) -> _Forms:
        """Both moved apart."""
        self.half[:, 0] = above(self.half[:, 0] + error)
        return _Forms(self.centre, self.half)


@dataclass(frozen=True)
class SymbolicIntervals:
    """Pre-activations by symbolic intervals, the spec's rows by back-substitution with DeepPoly's slopes.

    Up to the second non-linear layer they are DeepPoly's; behind it they are looser, the more so the deeper.
    A lower bound of every node is one form and an upper bound another, so that nothing is pulled back for each neuron.

    Cost: for networks of few inputs, n: that of 2 (n + 1) evaluations a sample.

    Source: Wang et al. 2018 (Neurify, arXiv 1809.08098), symbolic linear relaxation.
    """

    continuous: ClassVar[bool] = False

    def bounds(
        self,
        network: Network,
        params: Params,
        box: Box,
        spec: Spec,
        *,
        pre: Mapping[str, Interval] | None = None,
        rigorous: bool = False,
    ) -> Bounds:
        """Bounds of the spec's rows and of every pre-activation, see :class:`tightrope.core.protocols.Relaxation`.

        Pre-activations hold for real arithmetic in any case.
        """
        with direct_convolutions():
            found = {**_pre_activations(network, params, box), **(pre or {})}
        return backward_bounds(network, params, box, spec, _slopes.adaptive, found, rigorous=rigorous)


def _pre_activations(network: Network, params: Params, box: Box) -> dict[str, Interval]:
    """Of every non-linear node's input, by name."""
    forms, found = {INPUT: _of_box(network, params, box)}, {}
    for node in network.nodes:
        inputs = [forms[name] for name in node.inputs]
        if isinstance(node.op, AffineOp):
            forms[node.name] = _affine(node.op, params, inputs)
            continue
        assert isinstance(node.op, ElementwiseOp)
        interval = found[node.inputs[0]] = inputs[0].interval()
        lines = node.op.outward(interval, node.op.envelope(interval, node.op.minimum_area(interval)))
        forms[node.name] = _elementwise(inputs[0], lines)
    return found


def _of_box(network: Network, params: Params, box: Box) -> _Forms:
    centre, radius = forward_intervals(network, params, box, only=(), rigorous=True).middle(INPUT)
    coefs = torch.diag_embed(radius.flatten(1)).reshape(*radius.shape[:1], -1, *radius.shape[1:])
    forms = torch.cat([centre[:, None], coefs], 1)
    return _Forms(forms, torch.zeros_like(forms))


def _affine(op: AffineOp, params: Params, inputs: list[_Forms]) -> _Forms:
    """A C + b and |A| R."""
    batch, count = inputs[0].centre.shape[:2]
    centre = op.linear(params, *(form.centre.flatten(0, 1) for form in inputs))
    half = op.linear_abs(params, *(form.half.flatten(0, 1) for form in inputs))
    forms = _Forms(*(value.reshape(batch, count, *value.shape[1:]) for value in (centre, half)))
    roundings, bias = op.roundings(params), op.bias(params)
    if roundings == 0 and bias is None:
        return forms
    forms = _Forms(forms.centre.clone(), forms.half.clone())  # they may be those of an input
    share, least = gamma(roundings + 2 * count + 16, centre.dtype), tiny(centre.dtype)
    error = share * op.linear_abs(params, *(form.size + least for form in inputs))
    if bias is not None and (bias_size := op.bias_abs(params)) is not None:
        forms.centre[:, 0] += bias
        error = error + share * bias_size
    return forms.wider(error + (roundings + 2 * count + 16) * least)


def _elementwise(forms: _Forms, lines: Lines) -> _Forms:
    """The lower line of the lower form, or of the upper one where it falls, and the upper line likewise."""
    centre, half = forms.centre, forms.half
    lower_bias = torch.zeros_like(lines.upper_bias) if lines.lower_bias is None else lines.lower_bias
    mean, gap = (lines.upper_slope + lines.lower_slope) / 2, (lines.upper_slope - lines.lower_slope) / 2
    sizes = lines.upper_slope.abs(), lines.lower_slope.abs()
    mean_size, gap_size = (sizes[0] + sizes[1]) / 2, (sizes[0] - sizes[1]) / 2
    found = _Forms(
        mean[:, None] * centre + gap_size[:, None] * half,
        gap[:, None] * centre + mean_size[:, None] * half,
    )
    found.centre[:, 0] += (lines.upper_bias + lower_bias) / 2
    found.half[:, 0] += (lines.upper_bias - lower_bias) / 2
    terms = mean_size * forms.size + lines.upper_bias.abs() + lower_bias.abs()
    return found.wider(2 * _share(forms) * terms + tiny(terms.dtype))


def _share(forms: _Forms) -> float:
    return gamma(2 * forms.centre.shape[1] + 16, forms.centre.dtype)
