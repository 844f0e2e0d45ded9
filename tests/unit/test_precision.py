"""The precision of float32 products is what was asked for inside, and what it was outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import FULL_PRECISION, precision
from tightrope.core.precision import float32_products, full_precision
from tightrope.core.spec import Spec
from tightrope.errors import NumericalError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.training.events import Silent
from tightrope.training.loop import train


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Afterwards the process is set as torch starts, whatever a test did."""
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def old_style() -> None:
    torch.set_float32_matmul_precision("medium")


def flags() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = False


def new_style() -> None:
    """After this torch refuses to name one precision for all."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def everything() -> None:
    torch.backends.fp32_precision = "tf32"


each_setting = pytest.mark.parametrize("setting", [lambda: None, old_style, flags, new_style, everything])


@each_setting
def test_full_precision_holds_inside_and_the_old_settings_come_back(setting: Callable[[], None]) -> None:
    setting()
    before = precision()
    with full_precision():
        assert precision() == FULL_PRECISION
        with float32_products("medium"):
            assert precision()[0] == "medium"
        assert precision() == FULL_PRECISION
    assert precision() == before


@each_setting
def test_an_error_inside_brings_the_old_settings_back(setting: Callable[[], None]) -> None:
    setting()
    before = precision()

    @full_precision()
    def fails() -> None:
        assert precision() == FULL_PRECISION
        raise NumericalError("as it happens")

    for _ in range(2):
        with pytest.raises(NumericalError):
            fails()
    assert precision() == before


@pytest.mark.parametrize("level", ["high", "medium"])
def test_lower_precision_is_allowed_where_it_is_asked_for(level: Any) -> None:
    with float32_products(level):
        assert torch.get_float32_matmul_precision() == level
        assert torch.backends.cudnn.allow_tf32


def test_no_autocast_inside() -> None:
    x = torch.rand(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------- training


def test_training_has_the_precision_of_its_settings_and_puts_it_back() -> None:
    seen: list[str] = []
    settings = {
        "data": {"name": "digits", "train": 40, "validation": 10},
        "model": {"name": "mlp", "width": [4]},
        "method": {"name": "standard"},
        "eps": {"train": "0.1"},
        "train": {"epochs": 1, "batch_size": 30, "matmul_precision": "high"},
    }
    config = load_config(settings)[1]
    job = build_job(config, build_plugins(config), data_dir=None)

    def watched(labels: Tensor) -> Spec:
        seen.append(torch.get_float32_matmul_precision())
        return job.make_spec(labels)

    before = precision()
    state = job.new_state()
    watching = replace(job, make_spec=watched)
    train(
        watching,
        state,
        checkpoint=lambda _: None,
        finish_epoch=lambda _: None,
        back_off=lambda _: None,
        watcher=Silent(),
    )
    assert set(seen) == {"high"}
    assert precision() == before
