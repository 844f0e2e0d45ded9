"""Networks of many layer types, from the module through every relaxation, the attack and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, attacked_points, corner_points, random_points, randomise, relaxation, rows_at
from tightrope.attacks.pgd import Pgd
from tightrope.core import registry
from tightrope.core.outcome import Verdict
from tightrope.core.spec import worst_margin
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

SHAPE = (1, 6, 6)


class ResidualBlock(nn.Module):
    """A block of convolutions with batch normalisation and a shortcut that halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3),
        )
        self.shortcut = nn.Conv2d(2, 3, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.shortcut(x))


class Mixed(nn.Module):
    """Down by pooling, up by a transposed convolution, beside what was there before; S-shaped functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Linear(72, 3)
        self.pool, self.act = nn.MaxPool2d(2), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.tanh(self.down((x - 0.5) / 0.25)))
        y = self.act(self.up(self.act(self.middle(1.0 - 2.0 * y))))
        return self.head(torch.cat([x, y], 1).flatten(1))


NETS = {
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        ResidualBlock(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    ),
    "mixed": Mixed,
}
each_net = pytest.mark.parametrize("net", NETS)


def module(net: str) -> nn.Module:
    return randomise(NETS[net](), 1)


def images(batch: int) -> Tensor:
    return torch.rand((batch, *SHAPE), generator=torch.Generator().manual_seed(2), dtype=F64)


@each_net
@pytest.mark.parametrize("name", registry.names("relaxations"))
@pytest.mark.parametrize("eps", [0.005, 0.1])
def test_margins_are_below_every_point(net: str, name: str, eps: float) -> None:
    own = module(net)
    known, params = tr.from_module(own, SHAPE)
    x, generator = images(3), torch.Generator().manual_seed(0)
    box, spec = tr.linf_box(x, eps), tr.margin_spec(own(x).argmax(1), 3, dtype=F64)
    points = [random_points(box, 300, generator), corner_points(box, 100, generator)]
    points = torch.cat([*points, attacked_points(known, dict(params), box, spec)])
    seen = rows_at(spec, own(points.flatten(0, 1)).unflatten(0, points.shape[:2])).amin(0)
    assert torch.all(relaxation(name).bounds(known, params, box, spec).margins <= seen + 1e-9)


@each_net
def test_verdicts_are_true(net: str) -> None:
    """Proved where no sample refutes it, refuted by an image of the box; both occur."""
    own = module(net)
    known, params = tr.from_module(own, SHAPE)
    stages = [OneShot(relaxation(name), name) for name in ("ibp", "crown_ibp", "deeppoly")]
    cascade = Cascade((AttackVerifier(Pgd(steps=10, restarts=1, loss="margin")), *stages))
    verdicts = set()
    for eps in (0.001, 0.02, 0.5):
        x, generator = images(6), torch.Generator().manual_seed(0)
        box, spec = tr.linf_box(x, eps), tr.margin_spec(own(x).argmax(1), 3, dtype=F64)
        points = random_points(box, 300, generator)
        seen = rows_at(spec, own(points.flatten(0, 1)).unflatten(0, points.shape[:2])).amin(0)
        for i, outcome in enumerate(cascade.verify(known, params, box, spec, generator=generator)):
            verdicts.add(outcome.verdict)
            worst = worst_margin(seen[i : i + 1], spec.clause)
            assert outcome.verdict is not Verdict.VERIFIED or worst > 0
            if outcome.counterexample is not None:
                assert own(outcome.counterexample[None]).argmax(1) != own(x[i : i + 1]).argmax(1)
    assert {Verdict.VERIFIED, Verdict.FALSIFIED} <= verdicts


@each_net
def test_certify_runs_end_to_end(net: str, tmp_path: Path) -> None:
    own = module(net)
    data = images(6), own(images(6)).argmax(1)
    attack = {"name": "pgd", "steps": 3, "restarts": 1}
    summary = tr.certify(own, data, "1/1000", out=tmp_path / "images.jsonl", attack=attack)
    assert summary.natural == 6
    assert 0 < summary.certified <= summary.adversarial


@each_net
def test_a_certified_loss_trains_it(net: str) -> None:
    """Every weight has a finite gradient, and some are not 0."""
    known, params = tr.from_module(module(net), SHAPE)
    x = images(3)
    leaves = {key: value.clone().requires_grad_(key in known.trainable) for key, value in params.items()}
    loss = tr.certified_loss(known, relaxation("crown_ibp"), tr.linf_box(x, 0.01), torch.tensor([0, 1, 2]))
    grads = torch.autograd.grad(loss(leaves)[0], [leaves[key] for key in known.trainable])
    assert all(grad.isfinite().all() for grad in grads)
    assert any(grad.abs().max() > 0 for grad in grads)
