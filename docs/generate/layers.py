"""Which relaxation bounds which layer: tried out on the examples that every layer brings along."""

from __future__ import annotations

import torch
from docs.generate.markdown import page, table
from torch import Tensor, nn

import tightrope as tr
from tightrope.auditor.graph import OPS as AUDITED
from tightrope.core import registry
from tightrope.core.bounds import Shape
from tightrope.core.box import Box
from tightrope.core.op import ElementwiseOp, Op
from tightrope.core.spec import Spec, evaluate

POINTS, EPS = 64, 0.2

INTRODUCTION = """\
A layer is a file in `ops/` that states facts; a relaxation is a file in `relaxations/` that asks for them. So every
relaxation bounds every layer. This table is no claim of ours: it is computed when this page is built. Each
relaxation bounds all outputs of every example of a layer over boxes of radius {eps}, and *yes* says that the bounds
are finite and hold at the middle and at {points} random points of each. The tests ask for far more of the same
examples."""

LEGEND = """\
- **made of**: the modules that become this layer. Functional forms, and what has no module (sums, products with
  constants, views), are read from `forward`; `nn.MaxPool2d` becomes `tap`, `relu` and `maximum`; `nn.Dropout` and
  `nn.Identity` are left out.
- **split**: branch and bound can split the neurons of this layer at a breakpoint. The others it leaves as they are,
  and cuts boxes instead where the input has at most eight entries.
- **audited**: `tightrope audit` knows the layer, so that certificates can be confirmed.

A layer that is missing: [add it](../how-to/add-a-layer.md). Networks in ONNX files: [which operators are
read](../how-to/verify-onnx.md#what-is-read)."""


def pages() -> dict[str, str]:
    """``reference/layers.md``."""
    relaxations = registry.names("relaxations")
    rows = [_row(name, relaxations) for name in registry.names("ops")]
    columns = ["layer", "made of", *(f"`{name}`" for name in relaxations), "split", "audited"]
    introduction = INTRODUCTION.format(eps=EPS, points=POINTS)
    return {"reference/layers.md": page("Layers and relaxations", introduction, table(columns, rows), LEGEND)}


def holds(relaxation: str, module: nn.Module, shape: Shape) -> bool:
    """Whether finite bounds of a module's outputs hold at points of random boxes.

    Args:
        relaxation: its name.
        module: of any layers.
        shape: of one input.
    """
    net, params = tr.from_module(nn.Sequential(module.eval(), nn.Flatten()), shape)
    generator = torch.Generator().manual_seed(0)
    box = tr.linf_box(torch.rand((2, *shape), generator=generator, dtype=torch.float64), EPS)
    params = {key: value.to(torch.float64) if value.is_floating_point() else value for key, value in params.items()}
    spec = _ends(net.num_outputs)
    margins = tr.relaxation(relaxation).bounds(net, params, box, spec, rigorous=True).margins
    rows = torch.stack([evaluate(spec, net(params, x)) for x in _points(box, generator)])
    return bool(torch.isfinite(margins).all() and (margins <= rows.amin(0) + 1e-12).all())


def _row(name: str, relaxations: list[str]) -> list[str]:
    cls: type[Op] = registry.find("ops", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        examples = cls.examples()
    modules = ", ".join(f"`nn.{module.__name__}`" for module in cls.modules)
    cells = [_mark(all(holds(relaxation, *example) for example in examples)) for relaxation in relaxations]
    split = issubclass(cls, ElementwiseOp) and cls.breakpoints == (0.0,)
    return [f"`{name}`", modules or "`forward`", *cells, _mark(split), _mark(name in AUDITED)]


def _mark(holds: bool) -> str:
    return "yes" if holds else "no"


def _points(box: Box, generator: torch.Generator) -> list[Tensor]:
    shares = [torch.rand(box.lower.shape, generator=generator, dtype=torch.float64) for _ in range(POINTS)]
    return [box.lower + share * (box.upper - box.lower) for share in (torch.full_like(box.lower, 0.5), *shares)]


def _ends(outputs: int) -> Spec:
    """Every output and its negative: both ends of its range."""
    identity = torch.eye(outputs, dtype=torch.float64)
    matrix = torch.cat([identity, -identity])
    return Spec(matrix.expand(2, -1, -1), matrix.new_zeros(2, 2 * outputs), tuple(range(2 * outputs)))
