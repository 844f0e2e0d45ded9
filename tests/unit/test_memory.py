"""Counting live bytes: exact for everything that allocates tensors."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tightrope.runtime.memory import LiveBytes, free_memory, peak_memory

ROW = 1000
BYTES = 4 * ROW


def counted(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes alive after the work, whose result is kept, and at its peak."""
    with LiveBytes() as count:
        kept = work()
        current = count.current
    assert kept is not count
    return current, count.peak


def vector() -> Tensor:
    return torch.rand(ROW, generator=torch.Generator().manual_seed(0))


def test_a_new_tensor_counts_until_it_dies() -> None:
    with LiveBytes() as count:
        x = torch.zeros(ROW)
        assert count.current == BYTES
        y = x + 1
        assert count.current == 2 * BYTES
        del x
        assert count.current == BYTES
        del y
        assert (count.current, count.peak) == (0, 2 * BYTES)


def test_views_share_their_bytes_and_keep_them_alive() -> None:
    with LiveBytes() as count:
        x = torch.zeros(ROW)
        view = x.view(10, -1).t()[3:]
        assert count.current == BYTES
        del x
        assert count.current == BYTES
        del view
        assert count.current == 0


def test_what_was_there_before_does_not_count() -> None:
    x = vector()
    assert counted(lambda: (x.view(10, -1), x.t(), x.add_(1), x.detach())) == (0, 0)


def test_in_place_and_out_arguments_allocate_nothing() -> None:
    x, y = vector(), vector()
    assert counted(lambda: (x.mul_(2), torch.add(x, y, out=y))) == (0, 0)


def test_saved_tensors_of_autograd_live_until_backward() -> None:
    """exp keeps its result, sin its input (the same tensor), and the sum and the gradient come on top."""
    x = vector().requires_grad_()
    with LiveBytes() as count:
        y = x.exp().sin().sum()
        assert count.current == BYTES + 4  # the result of exp and a scalar: that of sin is gone
        (grad,) = torch.autograd.grad(y, x)
        assert count.current == BYTES + 4
        assert 3 * BYTES <= count.peak <= 4 * BYTES
        del y, grad
        assert count.current == 0


@pytest.mark.parametrize("members", [1, 3, 8])
def test_members_under_vmap_count_each(members: int) -> None:
    stacked, x = torch.rand(members, ROW, generator=torch.Generator().manual_seed(0)), vector()
    current, peak = counted(lambda: torch.func.vmap(lambda w: (w * x).exp())(stacked))
    assert (current, peak) == (members * BYTES, 2 * members * BYTES)


def test_gradients_under_vmap_are_seen() -> None:
    stacked = torch.rand(5, ROW, generator=torch.Generator().manual_seed(0))
    current, peak = counted(lambda: torch.func.vmap(torch.func.grad(lambda w: w.exp().sum()))(stacked))
    assert current == 5 * BYTES
    assert peak >= 10 * BYTES


def test_counting_changes_no_result_and_no_random_state() -> None:
    x, before = vector(), torch.get_rng_state()
    with LiveBytes():
        inside = (x.sin() @ x).item()
    assert inside == (x.sin() @ x).item()
    assert torch.equal(torch.get_rng_state(), before)


def test_peak_memory_covers_what_is_alive() -> None:
    """At least the bytes of the tensors that are written; at most a few MiB more of the libraries' own."""
    size = 64 * 2**20
    peak = peak_memory(lambda: torch.ones(size // 4).sum(), torch.device("cpu"))
    assert size - 2**20 <= peak <= size + 16 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_is_kept_is_not_fetched_again() -> None:
    """Twenty times the same two tensors of 8 MiB: the pages of earlier rounds serve most of them."""
    code = """if True:
        import resource, torch
        from tightrope.runtime.memory import keep_freed_memory, return_freed_memory
        keep_freed_memory()
        def use():
            torch.ones(2**21).add(1).mul_(2)
        use()
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        before = faults()
        for _ in range(20):
            use()
        kept = faults() - before
        return_freed_memory()
        use()
        print(kept, faults() - before - kept)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    kept, after_return = map(int, done.stdout.split())
    assert kept < 20 * 2048  # 8 MiB are 2048 pages; forty tensors' would be fetched if none were kept
    assert after_return > 2048


def test_there_is_free_memory() -> None:
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps such a bound")
def test_what_is_beyond_a_bound_of_the_memory_raises_and_the_bound_ends() -> None:
    """In a process of its own: what another test has freed and the C library has kept is no new memory."""
    code = """if True:
        import torch
        from tightrope.runtime.memory import bounded_memory
        with bounded_memory(0.25):
            assert float(torch.ones(1000).sum()) == 1000
            try:
                torch.ones(2**27)  # half a GiB
            except RuntimeError as error:
                print(error)
        assert torch.ones(2**27).numel() == 2**27
        with bounded_memory(None):
            assert torch.ones(2**27).numel() == 2**27
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "memory" in done.stdout
