"""What every certification is given: a network, images with their properties, and how they are drawn for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tightrope.core.bounds import Params
from tightrope.core.box import Box, inner_box, linf_box, parse_eps, round_up
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.core.noise import derived_generator
from tightrope.core.outcome import Outcome, Verdict
from tightrope.core.protocols import Verifier
from tightrope.core.spec import Spec, check_spec
from tightrope.errors import InputError
from tightrope.records.image import NATURAL
from tightrope.verifiers._merge import merge, numbered, within
from tightrope.verifiers._problem import INF, NEAR_TIE, Margin, Problem, margin_bounds, undecided

DTYPES = (torch.float32, torch.float64)
MakeSpec = Callable[[Tensor], Spec]
Draw = Sequence[int | str]


@dataclass(frozen=True)
class Inputs:
    """Images of a network, in blocks of fixed indices.

    Attributes:
        x: (n, *input shape), float64 or float32: the arithmetic of the bounds.
        labels: integers, (n,).
        make_spec: from labels (batch,) to the property of each image.
        batch_size: images a block.
        seed: of everything that is drawn.
    """

    network: Network
    params: Params
    x: Tensor
    labels: Tensor
    make_spec: MakeSpec
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        """Number of images."""
        return self.x.shape[0]

    def checked(self, eps: str | Fraction) -> Inputs:
        """The inputs with their weights in the dtype of the images; all that can be wrong with them is found here.

        Args:
            eps: the largest radius that will be asked for.

        Raises:
            InputError: images, labels, eps or specs that do not fit.
            NumericalError: NaN or infinite weights.
        """
        shape = tuple(self.x.shape)
        if self.x.dtype not in DTYPES or shape[1:] != self.network.input_shape:
            raise InputError(
                f"The images must be float64 or float32 of shape (n, *{self.network.input_shape}), got {self.x.dtype} "
                f"{shape}."
            )
        if self.size == 0:
            raise InputError("There are no images to certify.")
        if tuple(self.labels.shape) != (self.size,) or self.labels.is_floating_point():
            raise InputError(f"The labels must be {self.size} integers, got {self.labels.dtype} {self.labels.shape}.")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}.")
        self.network.check_params(self.params)
        params = {name: _exactly(v, self.x.dtype, f"The weights {name}") for name, v in self.params.items()}
        inputs = replace(self, params=params)
        for block in inputs.blocks():
            inputs.problem(block, [parse_eps(eps)] * len(block))
        return inputs

    def blocks(self) -> list[range]:
        """All indices."""
        starts = range(0, self.size, self.batch_size)
        return [range(start, min(start + self.batch_size, self.size)) for start in starts]

    def problem(self, images: Sequence[int], eps: Sequence[Fraction]) -> Problem:
        """Boxes and properties of some images, each with a radius of its own."""
        where = self._where(images)
        box: Box = linf_box(self.x[where], self._radii(eps))
        spec = check_spec(self.make_spec(self.labels[where]), len(images), self.network.num_outputs)
        matrix, offset = (_exactly(t, self.x.dtype, "The specs") for t in (spec.matrix, spec.offset))
        return Problem(self.network, self.params, box, Spec(matrix, offset, spec.clause))

    def clean(self, images: Sequence[int]) -> list[Outcome]:
        """What the images themselves decide: nothing but that those that are not natural are falsified."""
        x = self.x[self._where(images)]
        margins = margin_bounds(self.problem(images, [Fraction(0)] * len(images)), x)
        return [_at_clean(margin, point) for margin, point in zip(margins, x, strict=True)]

    def verify(
        self,
        verifier: Verifier,
        images: Sequence[int],
        eps: Sequence[Fraction],
        known: Sequence[Outcome],
        draw: Draw,
    ) -> list[Outcome]:
        """What a verifier adds to what is known of some images.

        Args:
            verifier: called once.
            images: their indices, which errors name.
            eps: radii.
            known: undecided so far.
            draw: what the draws depend on, beside the seed.

        Raises:
            InvariantError: it contradicts what is known, or itself.
        """
        problem = self.problem(images, eps)
        network, params, box, spec = problem
        generator = derived_generator(self.x.device, self.seed, *draw)
        with numbered(images):
            found = merge(problem, known, verifier.verify(network, params, box, spec, generator=generator))
        return within(problem, inner_box(self.x[self._where(images)], self._radii(eps)), found)

    def _where(self, images: Sequence[int]) -> Tensor:
        return torch.tensor(images, device=self.x.device)

    def _radii(self, eps: Sequence[Fraction]) -> Tensor:
        """One a sample, which broadcasts against the images."""
        radii = torch.tensor([round_up(each) for each in eps], dtype=torch.float64, device=self.x.device)
        return radii.reshape(-1, *[1] * (self.x.dim() - 1))

    def facts(self) -> dict[str, Any]:
        """What results depend on, as far as the inputs tell."""
        return {
            "count": self.size,
            "dtype": str(self.x.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "weights": tensor_digest(self.params),
            "samples": tensor_digest({"x": self.x, "labels": self.labels}),
        }


def is_natural(clean: Outcome) -> bool:
    """Whether the property holds at the clean image by more than rounding: nothing speaks against it."""
    return clean.verdict is Verdict.UNKNOWN and not clean.reason


def _at_clean(margin: Margin, x: Tensor) -> Outcome:
    """Falsified by the clean image itself, or undecided; overflow and near-ties there are unknown and not natural."""
    lower, upper = margin
    if not math.isfinite(upper):
        return undecided(NATURAL, "NaN or infinite output at the clean image")
    if upper <= 0:
        return Outcome(Verdict.FALSIFIED, -INF, upper, NATURAL, counterexample=x)
    return undecided(NATURAL, "" if lower > 0 else f"{NEAR_TIE}, at the clean image", upper=upper)


def _exactly(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The same numbers in another dtype: rounded ones would be about another network."""
    if not value.is_floating_point() or value.dtype == dtype:
        return value
    cast = value.to(dtype)
    if not torch.equal(cast.double(), value.double()):
        raise InputError(f"{what} are {value.dtype} and would be rounded to {dtype}: give the images in {value.dtype}.")
    return cast
