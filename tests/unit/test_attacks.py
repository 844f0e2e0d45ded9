"""Auto-PGD against its paper: checkpoints, losses on logits, the two conditions; and attacks one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from helpers import F64, case
from tightrope.attacks._losses import LOSSES
from tightrope.attacks.apgd import Apgd, _checkpoints, _Pace, _targets
from tightrope.attacks.pgd import Pgd
from tightrope.core.bounds import Params
from tightrope.core.box import Box
from tightrope.core.network import Network
from tightrope.core.outcome import Verdict
from tightrope.core.spec import Spec, clause_margins, evaluate
from tightrope.errors import InputError, UnknownNameError
from tightrope.verifiers.attack import AttackVerifier


def test_checkpoints_are_those_of_the_paper() -> None:
    """p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), rounded up."""
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(_checkpoints(100).values()) == [0, 22, 41, 57, 70, 80, 87, 93]
    assert _checkpoints(0) == {}
    assert list(_checkpoints(3)) == [1, 2, 3]


def test_the_step_size_is_halved_by_either_condition() -> None:
    """Too few increases; or the same step size and the same best loss as at the last checkpoint."""
    start = _Pace.start(torch.zeros(3, dtype=F64))
    for losses in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [2.0, -2.0, 2.0], [3.0, 1.0, 3.0], [4.0, 0.0, 4.0]):
        start = start.saw(torch.tensor(losses, dtype=F64))
    assert start.increases.tolist() == [4.0, 1.0, 4.0]
    peak = torch.tensor([4.0, 1.0, 4.0], dtype=F64)
    first, stuck = start.checked(peak, 4)
    assert stuck.tolist() == [False, True, False]
    assert first.size.tolist() == [2.0, 1.0, 2.0]
    assert first.last.tolist() == [4.0, 1.0, 4.0]  # the second goes on from its best point
    increasing = first._replace(increases=torch.full((3,), 2.0, dtype=F64))
    again, stuck = increasing.checked(torch.tensor([4.0, 1.0, 5.0], dtype=F64), 2)
    assert stuck.tolist() == [True, False, False]  # the second has just been halved, the third has improved
    assert again.size.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_losses_of_a_margin_spec_are_those_of_the_logits(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=generator, dtype=F64)
    labels = torch.randint(0, classes, (50,), generator=generator)
    spec = tr.margin_spec(labels, classes, dtype=F64)
    margins = clause_margins(evaluate(spec, logits), spec.clause)
    target = torch.randint(0, classes - 1, (50,), generator=generator)
    sort = logits.sort(dim=1, descending=True).values
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    chosen = logits.gather(1, (target + (target >= labels))[:, None])[:, 0]
    expected = {"margin": other - own, "ce": nn.functional.cross_entropy(logits, labels, reduction="none")}
    if classes == 2:  # no third logit: the differences themselves
        expected |= {"dlr": other - own, "dlr_targeted": chosen - own}
    else:
        last = sort[:, 2:4].mean(1)
        expected |= {
            "dlr": (other - own) / (sort[:, 0] - sort[:, 2]),
            "dlr_targeted": (chosen - own) / (sort[:, 0] - last),
        }
    assert expected.keys() == LOSSES.keys()
    for name, values in expected.items():
        torch.testing.assert_close(LOSSES[name](margins, target), values)


@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
def test_the_difference_of_logits_ratio_is_free_of_scale(name: str) -> None:
    margins = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    target = torch.arange(20) % 5
    torch.testing.assert_close(LOSSES[name](1e3 * margins, target), LOSSES[name](margins, target))


def test_restarts_have_targets_in_turn() -> None:
    """First the clause of the least margin at the centre of the box, then the next one, then from the beginning."""
    net, params = tr.from_module(nn.Linear(2, 2, bias=False).to(F64), (2,))
    params = {"weight": torch.eye(2, dtype=F64)}
    box = Box(-torch.ones(2, 2, dtype=F64), torch.ones(2, 2, dtype=F64))
    offset = torch.tensor([[0.9, 0.5], [0.5, 0.9]], dtype=F64)
    spec = Spec(torch.eye(2, dtype=F64).expand(2, 2, 2), offset, (0, 1))
    assert _targets(net, params, box, spec, 3).tolist() == [1, 0, 0, 1, 1, 0]


def test_finds_counterexamples_where_plain_gradient_descent_does() -> None:
    """At equal cost, over networks and boxes of several sizes: at least as many, from the same starts."""
    found = {"pgd": 0, "apgd": 0}
    for net, radius in product(("conv", "residual", "leaky", "grouped"), (0.1, 0.2, 0.4)):
        known = case(net)
        x = known.inputs(40)
        box, spec = tr.linf_box(x, radius), tr.margin_spec(known.net(known.params, x).argmax(1), 3, dtype=F64)
        for name, attack in (("pgd", Pgd(steps=20, loss="margin")), ("apgd", Apgd(steps=20))):
            noise = attack.noise(box, torch.Generator().manual_seed(0))
            best = attack.perturb(known.net, known.params, box, spec, noise)
            found[name] += int((evaluate(spec, known.net(known.params, best)).amin(1) <= 0).sum())
    assert found["apgd"] >= found["pgd"] > 20


@pytest.mark.parametrize("options", [{"steps": -1}, {"restarts": 0}])
def test_refuses_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Apgd(**options)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'dlr'"):
        Apgd(loss="dl")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- one after the other


@dataclass(frozen=True)
class Corner:
    """An attack that returns one end of the box, and notes how many samples it saw."""

    upper: bool
    seen: list[int] = field(default_factory=list)

    def noise(self, box: Box, generator: torch.Generator) -> Tensor:
        return torch.rand((1, *box.lower.shape), generator=generator, dtype=box.lower.dtype)

    def perturb(self, network: Network, params: Params, box: Box, spec: Spec, noise: Tensor) -> Tensor:
        self.seen.append(len(box.lower))
        return box.upper if self.upper else box.lower


def test_later_attacks_see_what_is_not_broken_yet_and_the_smallest_margin_is_kept() -> None:
    net, params = tr.from_module(nn.Linear(1, 1, bias=False).to(F64), (1,))
    params = {"weight": torch.ones(1, 1, dtype=F64)}
    box = Box(torch.tensor([[-1.0], [1.0], [2.0]], dtype=F64), torch.tensor([[5.0], [3.0], [4.0]], dtype=F64))
    spec = Spec(
        torch.tensor([[[1.0]], [[1.0]], [[-1.0]]], dtype=F64), torch.tensor([[0.0], [0.0], [9.0]]).double(), (0,)
    )
    low, high = Corner(False), Corner(True)
    outcomes = AttackVerifier((low, high)).verify(net, params, box, spec, generator=torch.Generator())
    assert (low.seen, high.seen) == ([3], [2])
    assert [o.verdict for o in outcomes] == [Verdict.FALSIFIED, Verdict.UNKNOWN, Verdict.UNKNOWN]
    assert [o.upper for o in outcomes] == pytest.approx([-1.0, 1.0, 5.0])


def test_an_attack_stage_needs_an_attack() -> None:
    with pytest.raises(InputError):
        AttackVerifier(())
