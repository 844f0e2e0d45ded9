"""From files to a verdict: verified, falsified with a counterexample that stands up, or unknown with a reason."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn
from typer.testing import CliRunner

import tightrope as tr
from tightrope.cli import _console
from tightrope.cli import verify as command
from tightrope.cli.main import app
from tightrope.core.outcome import Outcome
from tightrope.errors import InputError, InvariantError, MissingExtraError
from tightrope.experiments import originals
from tightrope.experiments import verify as verifying
from tightrope.frontend.onnx_export import to_onnx
from tightrope.frontend.onnx_runtime import run_onnx
from tightrope.frontend.vnnlib import parse_property, read_property

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
BOX = "(assert (and (<= -1 X_0 1) (<= -1 X_1 1)))"
TINY = ("data.train=200", "model.width=[6]", "train.epochs=2", "eps.train=0.02", "optimizer.lr=0.02")


@pytest.fixture(autouse=True)
def wide_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console.out, "_width", 400)
    monkeypatch.setattr(_console.err, "_width", 400)


def peak() -> nn.Module:
    """Y_0 = |X_0| + |X_1|, Y_1 = 1, in ReLUs."""
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        net[2].bias.copy_(torch.tensor([0.0, 1.0]))
    return net


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(*tr.from_module(peak(), (2,))))
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(assertions: str) -> Path:
        path = tmp_path / f"property-{len(list(tmp_path.iterdir()))}.vnnlib"
        path.write_text(DECLARED + BOX + assertions)
        return path

    return write


def tightrope(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


CASES = {
    "above the peak": ("(assert (>= Y_0 2.01))", "verified", 0),
    "below the valley": ("(assert (< Y_0 -0.01))", "verified", 0),
    "at the peak": ("(assert (>= Y_0 1.9))", "falsified", 10),
    "one of several": ("(assert (or (>= Y_0 2.5) (<= Y_1 0.5) (>= Y_0 1.75)))", "falsified", 10),
    "none of several": ("(assert (or (>= Y_0 2.5) (<= Y_1 0.5) (and (>= Y_0 1.5) (>= Y_1 1.5))))", "verified", 0),
    "every box": (
        "(assert (or (and (<= X_0 0) (>= Y_0 2.1)) (and (>= X_0 0) (<= -0.25 X_1 0.25) (>= Y_0 1.26))))",
        "verified",
        0,
    ),
    "one box": ("(assert (or (and (<= X_0 -0.5) (>= Y_0 2.1)) (and (>= X_0 0) (>= Y_0 1.99))))", "falsified", 10),
    "boundary of a strict set": ("(assert (> Y_0 2))", "unknown", 20),
    "everything": ("", "falsified", 10),
    "corners do not belong": ("(assert (and (> X_0 0.5) (< X_0 1) (> X_1 -1) (>= Y_0 1.9)))", "falsified", 10),
    "corners alone do": ("(assert (and (> X_0 0.5) (< X_0 1) (>= Y_0 2)))", "unknown", 20),
}


@pytest.mark.parametrize(("assertions", "verdict", "code"), CASES.values(), ids=CASES)
def test_verdicts_and_exit_codes(
    assertions: str, verdict: str, code: int, net: Path, write: Callable[[str], Path], tmp_path: Path
) -> None:
    """And all but unknown ones come with evidence that an audit against the files confirms."""
    prop, folder = write(assertions), tmp_path / "evidence"
    result = tightrope("verify", net, prop, "--timeout", 20, "--evidence", folder)
    assert result.exit_code == code
    assert result.stdout.split("\n")[0].split(":")[0] == verdict
    assert verdict != "unknown" or re.match(r"unknown: \w+", result.stdout)
    if verdict == "falsified":
        check_counterexample(result.stdout, net, prop)
    if verdict != "unknown":
        assert f"tightrope audit {folder}" in result.stderr
        audit = tightrope("audit", folder, "--net", net, "--property", prop)
        assert audit.exit_code == 0, audit.output
        assert not re.search(r"\b0 of \d+ replayed", audit.output)


def check_counterexample(printed: str, net: Path, prop: Path) -> None:
    """What is printed, read again as exact decimals, is in the set that the file describes."""
    entries = dict(re.findall(r"\(([XY]_\d) ([^()]+)\)", printed))
    assert re.fullmatch(r"falsified\n\((\([XY]_\d [^()]+\)\n?)+\)\n", printed)
    x, y = ([Fraction(value) for name, value in entries.items() if name[0] == kind] for kind in "XY")
    found = read_property(prop)
    assert any(problem.refuted_by(x, y) for problem in found.problems)
    _, theirs = run_onnx(net, np.array([float(value) for value in x]))
    np.testing.assert_allclose([float(value) for value in y], theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("assertions", "word", "code"),
    [("(assert (>= Y_0 3))", "unsat", 0), ("(assert (>= Y_0 1))", "sat", 10), ("(assert (> Y_0 2))", "unknown", 20)],
)
def test_words_and_file_of_the_competition(
    assertions: str, word: str, code: int, net: Path, write: Callable[[str], Path], tmp_path: Path
) -> None:
    results = tmp_path / "results.txt"
    result = tightrope(
        "verify", net, write(assertions), "--vnncomp", "--results-file", results, "--timeout", 20, "--memory", 0.5
    )
    assert (result.stdout.split("\n")[0], result.exit_code) == (word, code)
    assert results.read_text() == result.stdout


def test_a_module_or_a_network_without_files() -> None:
    source = tr.from_module(peak(), (2,))
    found = tr.verify(source, parse_property(DECLARED + BOX + "(assert (>= Y_0 1.5))"), timeout=20)
    assert found.verdict is tr.Verdict.FALSIFIED
    assert found.replay == ""
    assert all(-1 <= value <= 1 for value in found.inputs)


def test_a_point_that_float64_cannot_represent_stays_in_the_exact_box(net: Path, tmp_path: Path) -> None:
    """The box is one point, 1/3 and a decimal of thirty digits."""
    prop = tmp_path / "point.vnnlib"
    digits = "0.123456789012345678901234567890"
    prop.write_text(f"{DECLARED}(assert (and (= X_0 (/ 1 3)) (= X_1 {digits}) (<= Y_0 0.5)))")
    found = tr.verify(net, prop, timeout=20)
    assert found.verdict is tr.Verdict.FALSIFIED
    assert found.inputs == (Fraction(1, 3), Fraction(digits))
    assert f"(X_1 {digits[:-1]})" in found.counterexample()


def test_random_networks_agree_with_a_grid(tmp_path: Path) -> None:
    """Verdicts against 10,000 points, for thresholds around the largest output that they have."""
    side = torch.linspace(-1, 1, 100, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    for seed in range(4):
        torch.manual_seed(seed)
        network, params = tr.from_module(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).double(), (2,))
        largest = float(network(params, grid)[:, 0].max())
        for gap, expected in ((-0.05, tr.Verdict.FALSIFIED), (0.5, tr.Verdict.VERIFIED)):
            prop = parse_property(f"{DECLARED}{BOX}(assert (>= Y_0 {largest + gap!r}))")
            assert tr.verify((network, params), prop, timeout=20).verdict is expected


def test_values_with_two_axes_are_cut_too() -> None:
    """Neurons of a matrix, by branch and bound: |x| of two entries is at most 1."""
    module = nn.Sequential(nn.Unflatten(1, (2, 1)), _Rows(), nn.Flatten())
    prop = "(assert (or (>= Y_0 {0}) (>= Y_1 {0})))"
    for threshold, expected in ((1.01, tr.Verdict.VERIFIED), (0.99, tr.Verdict.FALSIFIED)):
        source = tr.from_module(module, (2,))
        found = tr.verify(source, parse_property(DECLARED + BOX + prop.format(threshold)), timeout=20)
        assert found.verdict is expected


# ------------------------------------------------------------------------------------------- what ends as unknown


def test_no_time_is_a_timeout(net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    prop = write("(assert (>= Y_0 3))")
    found = tr.verify(net, prop, timeout=1e-9)
    assert (found.verdict, found.reason, found.timed_out) == (tr.Verdict.UNKNOWN, "timeout", True)
    assert tightrope("verify", net, prop, "--timeout", 1e-9, "--vnncomp").stdout == "timeout\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarms here")
def test_a_step_that_does_not_look_at_the_clock_is_interrupted(
    net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*args: Any, **kwargs: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(verifying.Cascade, "verify", forever)
    before = signal.getsignal(signal.SIGALRM)
    result = tightrope("verify", net, write("(assert (>= Y_0 3))"), "--timeout", 0.2)
    assert (result.stdout, result.exit_code) == ("unknown: timeout\n", 20)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_network_that_onnxruntime_evaluates_otherwise_is_unknown(
    net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "run_onnx", lambda source, x: (x, np.array([7.0, 7.0])))
    found = tr.verify(net, write("(assert (>= Y_0 1))"), timeout=20)
    assert found.verdict is tr.Verdict.UNKNOWN
    assert "onnxruntime computes other outputs" in found.reason


def test_a_network_that_onnxruntime_refuses_is_unknown(
    net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any) -> None:
        raise InputError("onnxruntime cannot run the network")

    monkeypatch.setattr(verifying, "run_onnx", refuses)
    found = tr.verify(net, write("(assert (>= Y_0 1))"), timeout=20)
    assert (found.verdict, found.timed_out) == (tr.Verdict.UNKNOWN, False)
    assert found.reason == "a counterexample was found, but onnxruntime cannot run the network"


def test_counterexamples_are_replayed_on_the_graph_as_it_is_written() -> None:
    """onnxruntime cannot fuse a ReLU with a Clip in float64."""
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("Relu", ["x"], ["z"]), onnx.helper.make_node("Clip", ["z", "low", "high"], ["y"])]
    limits = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in (("low", -0.5), ("high", 0.5))]
    ends = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [1, 2])] for name in "xy"]
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends, limits), opset_imports=opset)
    model.ir_version = 8
    _, y = run_onnx(model.SerializeToString(), np.array([2.0, -1.0]))
    assert y.tolist() == [0.5, 0.0]


def test_without_onnxruntime_the_counterexample_says_so(
    net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: Any) -> None:
        raise MissingExtraError("onnxruntime", "onnx")

    monkeypatch.setattr(verifying, "run_onnx", absent)
    found = tr.verify(net, write("(assert (>= Y_0 1))"), timeout=20)
    assert (found.verdict, found.replay) == (tr.Verdict.FALSIFIED, "not replayed: onnxruntime is not installed")


def test_a_counterexample_outside_the_exact_box_is_none(
    net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier may find points of the box that was rounded outward."""
    corner = torch.tensor([1.0, 1.0], dtype=torch.float64)
    wrong = Outcome(tr.Verdict.FALSIFIED, -1.0, 0.0, "test", corner)
    monkeypatch.setattr(verifying.Cascade, "verify", lambda *args, **kwargs: [wrong])
    monkeypatch.setattr(verifying.Bab, "verify", lambda *args, **kwargs: [wrong])
    found = tr.verify(net, write("(assert (>= Y_0 2.001))"), timeout=20)
    assert (found.verdict, found.timed_out) == (tr.Verdict.UNKNOWN, False)
    assert "rounding" in found.reason


def test_contradictions_are_errors(net: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def contradict(*args: Any, **kwargs: Any) -> None:
        raise InvariantError("two results")

    monkeypatch.setattr(verifying.Cascade, "verify", contradict)
    assert tightrope("verify", net, write("")).exit_code == 30


# ------------------------------------------------------------------------------------------------ evidence


def test_evidence_is_held_against_the_files(net: Path, write: Callable[[str], Path], tmp_path: Path) -> None:
    """Another network, another property, and a box without a certificate are found."""
    assertions, _, _ = CASES["every box"]
    prop, folder = write(assertions), tmp_path / "evidence"
    tr.verify(net, prop, timeout=20, evidence=folder)
    assert all(one.confirmed and one.replayed for one in tr.audit(folder, net=net, prop=prop))
    renamed = tmp_path / "renamed.onnx"
    renamed.write_bytes(net.read_bytes())
    assert all(one.confirmed for one in tr.audit(folder, net=renamed, prop=prop))
    assert "Box 2 of the property's 2" in tightrope("audit", folder / "1.safetensors").output.replace("\n", " ")
    other = tmp_path / "other.onnx"
    other.write_bytes(net.read_bytes() + b"\x52\x00")  # an empty field: the same network in another file
    for given, words in (
        ({"net": other}, "its network is not that of"),
        ({"prop": write("(assert (>= Y_0 2.01))")}, "it is not about the property in"),
        ({"prop": write(assertions + " ")}, "it is not about the property in"),
    ):
        found = tr.audit(folder, **given)
        assert {one.finding.verdict.value for one in found} == {"rejected"}
        assert all(words in one.finding.reason for one in found)
    (folder / "1.safetensors").unlink()
    (folder / "7.safetensors").write_bytes((folder / "0.safetensors").read_bytes())
    verdicts = [one.finding.verdict.value for one in tr.audit(folder, net=net, prop=prop)]
    assert verdicts == ["confirmed", "confirmed", "cannot confirm"]


def test_a_network_that_is_evaluated_otherwise_is_rejected(
    net: Path, write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tr.verify(net, write("(assert (>= Y_0 1.9))"), timeout=20, evidence=tmp_path / "evidence")
    monkeypatch.setattr(originals, "run_onnx", lambda source, x: (x, np.array([7.0, 7.0])))
    [found] = tr.audit(tmp_path / "evidence", net=net)
    assert (found.finding.verdict.value, found.finding.reason) == (
        "rejected",
        "onnxruntime computes other outputs there",
    )


def test_a_property_that_is_not_there_is_bad_input(net: Path, write: Callable[[str], Path], tmp_path: Path) -> None:
    tr.verify(net, write("(assert (>= Y_0 1.9))"), timeout=20, evidence=tmp_path / "evidence")
    result = tightrope("audit", tmp_path / "evidence", "--property", tmp_path / "nowhere.vnnlib")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_evidence_does_not_mix_with_what_is_there(net: Path, write: Callable[[str], Path], tmp_path: Path) -> None:
    result = tightrope("verify", net, write("(assert (>= Y_0 3))"), "--evidence", tmp_path)
    assert result.exit_code == 2
    assert "name a new folder" in result.stderr


# ----------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence_and_exit_code_2(net: Path, write: Callable[[str], Path], tmp_path: Path) -> None:
    prop = write("(assert (>= Y_0 3))")
    (tmp_path / "other.vnnlib").write_text("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= 0 X_0 1))")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    for arguments, words in (
        ((net, tmp_path / "missing.vnnlib"), "does not exist"),
        ((tmp_path / "missing.onnx", prop), "does not exist"),
        ((tmp_path / "bad.onnx", prop), "not an ONNX file"),
        ((net, tmp_path / "other.vnnlib"), "2 inputs and 2 outputs, the property is about 1 and 1"),
        ((net, write("(assert (>= X_0 2))")), "contradict"),
        ((net, prop, "--timeout", 0), "positive"),
        ((net, prop, "--timeout", "nan"), "positive"),
        ((net, prop, "--timeout", "inf"), "at most"),
        ((net, prop, "--timeout", 1e18), "at most"),
        ((net, prop, "--results-file", tmp_path), "a folder that exists"),
        ((net, prop, "--results-file", tmp_path / "missing" / "results.txt"), "a folder that exists"),
        ((net, prop, "--memory", -1), "positive"),
    ):
        result = tightrope("verify", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"timeout": float("inf")}, {"memory_gib": 0}])
def test_limits_must_be_positive(limits: dict[str, float], net: Path, write: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="must be positive"):
        tr.verify(net, write(""), **limits)


def test_the_alarm_is_off_afterwards(net: Path, write: Callable[[str], Path]) -> None:
    tightrope("verify", net, write("(assert (>= Y_0 3))"), "--timeout", 20)
    assert not hasattr(signal, "getitimer") or signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert command._CODES[tr.Verdict.VERIFIED] == 0


# -------------------------------------------------------------------------------------------------- export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tr.Run:
    return tr.fit("digits/mlp-ibp", overrides=TINY, out=tmp_path_factory.mktemp("runs") / "tiny")


def test_export_and_verify_a_run(run: tr.Run, tmp_path: Path) -> None:
    """What is exported is the run: same outputs, same verdicts as with its own network."""
    result = tightrope("export", run.path, "--onnx", "--vnnlib", 3, "-o", tmp_path, "--eps", "1/50")
    assert result.exit_code == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["image-0.vnnlib", "image-1.vnnlib", "image-2.vnnlib", "instances.csv", "network.onnx"]
    for line in (tmp_path / "instances.csv").read_text().split():
        net, prop, seconds = line.split(",")
        found = tr.verify(tmp_path / net, tmp_path / prop, timeout=float(seconds))
        own = tr.verify((run.network, run.params), tmp_path / prop, timeout=float(seconds))
        assert found.verdict is own.verdict is not tr.Verdict.UNKNOWN


def test_export_asks_for_something_that_there_is(run: tr.Run) -> None:
    for arguments, words in (((), "Say what to write"), (("--vnnlib", 10**6), "test images")):
        result = tightrope("export", run.path, *arguments)
        assert result.exit_code == 2
        assert words in result.stderr


MODULES = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, groups=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(4, 2, 2, 2),
        nn.Sigmoid(),
        nn.AvgPool2d(2, 1, 1),
        nn.Flatten(),
    ),
    "max pool": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(12, 2)),
    "branches": lambda: _Branches(),
}


class _Rows(nn.Module):
    """|x| of every entry."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() + (-x).relu()


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.inner((x - self.mean) / 0.25).relu()
        joined = torch.cat([x - inner, torch.maximum(x, inner)], 1)
        return joined.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("name", MODULES)
def test_exported_networks_compute_the_same_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    network, params = tr.from_module(module, (3, 4, 4))
    content = to_onnx(network, params)
    again, weights = tr.from_onnx(content)
    x = torch.rand(1, 3, 4, 4)
    expected = module(x)[0].detach().numpy()
    rounded, theirs = run_onnx(content, x.flatten().numpy())
    np.testing.assert_allclose(theirs, expected, rtol=1e-6, atol=1e-6)
    ours = again(weights, torch.from_numpy(rounded).reshape(1, 3, 4, 4))[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
