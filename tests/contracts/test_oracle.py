"""Every relaxation that auto_LiRPA has as well, against it: ``pytest -m oracle`` where that package is installed.

ReLU networks only: for other activations the two libraries choose their lines by different rules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tightrope as tr
from helpers import case, margins64, relaxation
from tightrope.core import registry

pytestmark = pytest.mark.oracle

BATCH = 4
COUNTERPART: dict[str, tuple[str, str]] = {  # method, and the rule of the lower lines
    "ibp": ("IBP", "adaptive"),
    "crown_ibp": ("CROWN-IBP", "adaptive"),
    "deeppoly": ("CROWN", "adaptive"),
    "deepz": ("CROWN", "same-slope"),
}
SLOPES = {"adaptive": "adaptive", "zero": "zero-lb", "parallel": "same-slope"}


def theirs(net: str, radius: float, method: str, rule: str) -> Tensor:
    lirpa: Any = pytest.importorskip("auto_LiRPA")
    known = case(net)
    x = known.inputs(BATCH)
    lower, upper = tr.linf_box(x, radius)
    # Dense mode, since their patches refuse a normalisation layer; not sparse, since they would otherwise intersect
    # intermediate bounds with those of IBP, which is another relaxation.
    options = {"activation_bound_option": rule, "conv_mode": "matrix", "sparse_intermediate_bounds": False}
    model = lirpa.BoundedModule(copy.deepcopy(known.module).eval(), torch.empty_like(x), bound_opts=options)
    model.eval()
    ball = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
    inputs = (lirpa.BoundedTensor(x, ball),)
    found, _ = model.compute_bounds(x=inputs, C=margins64(BATCH).matrix, method=method, bound_upper=False)
    return found.detach()


def ours(net: str, radius: float, name: str, **options: Any) -> Tensor:
    known = case(net)
    box = tr.linf_box(known.inputs(BATCH), radius)
    return relaxation(name, **options).bounds(known.net, known.params, box, margins64(BATCH)).margins


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Their dense mode makes tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", registry.names("relaxations"))
@pytest.mark.parametrize("net", ["mlp", "residual", "conv", "normed"])
@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_margins(name: str, net: str, radius: float) -> None:
    if name not in COUNTERPART:
        pytest.skip(f"auto_LiRPA has no {name}")
    expected = theirs(net, radius, *COUNTERPART[name])
    torch.testing.assert_close(ours(net, radius, name), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["crown_ibp", "deeppoly"])
@pytest.mark.parametrize("slope", SLOPES)
def test_rules_of_the_lower_lines(name: str, slope: str) -> None:
    expected = theirs("mlp", 0.2, COUNTERPART[name][0], SLOPES[slope])
    torch.testing.assert_close(ours("mlp", 0.2, name, slope=slope), expected.double(), rtol=1e-5, atol=1e-5)
