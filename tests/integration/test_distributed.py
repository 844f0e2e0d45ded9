"""Runs on several processes are the run on one, up to rounding; one that dies stops the others, and the run goes on.

Run as a script, this file is a server that forks the processes of one run for each line of its input, so that the
import of torch is paid once.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tightrope as tr
from tightrope.core.noise import derived_generator
from tightrope.core.ranks import Ranks
from tightrope.errors import InputError, RankLostError
from tightrope.experiments.build import build_job, build_plugins
from tightrope.experiments.load import load_config
from tightrope.records import files
from tightrope.records.run import EpochRecord, RunRecord
from tightrope.runtime import distributed
from tightrope.training import loop
from tightrope.training.events import StepEvent
from tightrope.training.state import load_tensors

BASE: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "digits", "train": 120, "validation": 10},
    "model": {"name": "mlp", "width": [6]},
    "method": {"name": "certified", "relaxation": "crown_ibp"},
    "eps": {"train": "0.05", "finish": 1},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 2, "batch_size": 22, "l1": 1e-4},
}  # 5 steps an epoch
SMOOTHERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "rgs": {"name": "rgs", "std": 0.01, "pairs": 2, "chunk": 2},
    "pgpe": {"name": "pgpe", "std": 0.05, "pairs": 5, "chunk": 4, "adapt": 0.01},
    "pgpe, then none": {"name": "pgpe", "std": 0.05, "pairs": 5, "chunk": 4, "epochs": 1},
    "hybrid": {"name": "hybrid", "std": 0.05, "pairs": 4, "chunk": 4, "shrink": True},
}
STEPS = 10


def settings(smoother: str) -> dict[str, Any]:
    return copy.deepcopy(BASE | {"smoother": SMOOTHERS[smoother]})


# ------------------------------------------------------------------------------------------ the processes


class Dying:
    """A watcher on the first process, and a sabotaged step on another, that end a process after some steps."""

    def __init__(self, step: int) -> None:
        self._step, self._train_step = step, loop.train_step

    def __call__(self, job: Any, state: Any) -> None:
        if state.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)
        self._train_step(job, state)


class Watching:
    def on_step(self, event: StepEvent) -> None: ...

    def on_epoch(self, record: EpochRecord) -> None: ...


def forbidden(*_: object) -> None:
    raise AssertionError("only the first process writes")


def work(order: dict[str, Any], rank: int) -> None:
    """One process of a run."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(order["size"]), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(order["port"]))
    if rank > 0:
        files.os.replace = forbidden  # type: ignore[attr-defined]
    if rank == order["dies"]:
        loop.train_step = Dying(order["step"])
    try:
        tr.fit(settings(order["smoother"]), out=order["folder"], resume=order["resume"], watcher=Watching())
    except RankLostError as error:
        Path(f"{order['folder']}.lost-{rank}").write_text(str(error))
        os._exit(3)


def serve() -> None:
    """For each line: the processes of a run, and a line with their exit codes."""
    torch.set_num_threads(1)
    config = load_config(settings("none"))[1]  # whatever is imported late is imported here, once
    build_job(config, build_plugins(config), data_dir=None).new_state()
    for line in sys.stdin:
        order, children = json.loads(line), []
        for rank in range(order["size"]):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    work(order, rank)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        os.write(1, f"{json.dumps(codes)}\n".encode())


class Server:
    """The other end of :func:`serve`."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=environment)

    def fit(
        self, smoother: str, folder: Path, size: int, *, resume: bool = False, dies: int = -1, step: int = -1
    ) -> list[int]:
        """The exit codes of the processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        order = {"smoother": smoother, "folder": str(folder), "size": size, "resume": resume}
        order |= {"dies": dies, "step": step, "port": port}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(60) == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "weights.safetensors")[0]


# ------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_the_result_does_not_depend_on_the_number_of_processes(smoother: str, tmp_path: Path, server: Server) -> None:
    """22 images and 10 in the last batch of an epoch are not shared evenly by 3."""
    for size in (1, 2, 3):
        assert server.fit(smoother, tmp_path / str(size), size) == [0] * size
    alone, record = weights(tmp_path / "1"), RunRecord.read(tmp_path / "1" / "record.json")
    for size in (2, 3):
        torch.testing.assert_close(weights(tmp_path / str(size)), alone, rtol=1e-4, atol=1e-6)
        other = RunRecord.read(tmp_path / str(size) / "record.json")
        assert other.final.train["loss"] == pytest.approx(record.final.train["loss"], rel=1e-5)
        assert {path.name for path in (tmp_path / str(size)).iterdir()} == {
            path.name for path in (tmp_path / "1").iterdir()
        }


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_stops_the_run_which_goes_on_with_any_number(
    dies: int, tmp_path: Path, server: Server
) -> None:
    folder = tmp_path / "run"
    codes = server.fit("hybrid", folder, 2, dies=dies, step=4)
    assert codes == ([-signal.SIGKILL, 3] if dies == 0 else [3, -signal.SIGKILL])
    message = Path(f"{folder}.lost-{1 - dies}").read_text()
    assert "Another process of this run ended" in message
    assert "--resume" in message
    assert RunRecord.read(folder / "record.json").status == ("running" if dies == 0 else "failed")
    assert server.fit("hybrid", folder, 3 - 2 * dies, resume=True) == [0] * (3 - 2 * dies)
    assert server.fit("hybrid", tmp_path / "whole", 1) == [0]
    torch.testing.assert_close(weights(folder), weights(tmp_path / "whole"), rtol=1e-4, atol=1e-6)


def test_fewer_pairs_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distributed, "ALONE", Ranks(0, 9, dict))
    with pytest.raises(InputError, match="pairs = 5 cannot be shared by 9"):
        tr.fit(settings("pgpe"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_alone_nothing_is_joined() -> None:
    with distributed.joined(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.size, distributed.is_first()) == (0, 1, True)
        value = torch.rand(3, generator=derived_generator("cpu", 0))
        assert torch.equal(ranks.sum({"x": value})["x"], value)


if __name__ == "__main__":
    serve()
