"""Beyond one call: memory over many of them, processes made after use, all operators at once in several threads."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import SUBJECTS, Subject, backends_of, over
from python_tests.ops._larger import LARGER
from vr_kernels.ops import _native

WITH_KERNELS = [subject for subject in SUBJECTS if "cpu" in backends_of(subject)]
ROOT = Path(__file__).parents[2]
CALLS = 10_000
ALLOWED = 1 << 20  # bytes that the resident set may grow by over them all, so that 105 bytes a call are seen

sanitized = pytest.mark.skipif(
    _native.unavailable() is None and _native.module().build_info()["sanitizer"],
    reason="AddressSanitizer keeps freed memory",
)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(call: Callable[[], object]) -> int:
    """Bytes that the resident set grows by over CALLS calls, after some that fill what is kept on purpose."""

    def after(calls: int) -> int:
        for _ in range(calls):
            call()
        gc.collect()
        return resident()

    return -after(CALLS // 10) + after(CALLS)


def growth_of(name: str) -> int:
    """Of the calls of an operator, or of "leak", 128 bytes a call that are kept."""
    if name == "leak":
        kept: list[bytes] = []
        return growth(lambda: kept.append(bytes(128)))
    subject = next(subject for subject in SUBJECTS if subject.name == name)
    function, call = subject.run("cpu"), subject.call()
    with torch.no_grad():
        return growth(lambda: function(**call))


@pytest.fixture(scope="module")
def growths() -> Iterator[dict[str, int]]:
    """Measured in a process of its own: the heap of one that has run other tests hides small leaks in what is free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])  # where the other process finds this file
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            names = ["leak", *(subject.name for subject in WITH_KERNELS)]
            yield dict(zip(names, pool.map(growth_of, names, chunksize=1), strict=True))


@sanitized
@over(WITH_KERNELS)
def test_memory_does_not_grow(subject: Subject, growths: dict[str, int]) -> None:
    assert growths[subject.name] < ALLOWED


@sanitized
def test_growth_is_seen(growths: dict[str, int]) -> None:
    assert growths["leak"] > ALLOWED


# A process that was forked has one thread, as the workers of torch's DataLoader do: OpenMP's threads stay behind.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_made_after_use_compute_the_same(start: str) -> None:
    calls = [(s.function, {**s.call(), **s.outputs, "backend": "cpu"}) for s in WITH_KERNELS]
    here = [function(**named) for function, named in calls]
    with multiprocessing.get_context(start).Pool(1, torch.set_num_threads, (1,)) as pool:
        there = [pool.apply_async(function, (), named).get(timeout=120) for function, named in calls]
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)  # torch's GEMMs round otherwise with one thread


def first_calls(names: list[str]) -> list[bool]:
    """Of a process: whether four threads that all begin with the same operators get the same numbers."""
    meeting = threading.Barrier(4)
    jobs = [(s.run("cpu"), s.call()) for name in names for s in SUBJECTS if s.name == name]

    def run(_: int) -> list[tuple[torch.Tensor, ...]]:
        meeting.wait()
        return [function(**call) for function, call in jobs]

    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(run, range(4))
    pairs = [(a, b) for other in others for x, y in zip(first, other, strict=True) for a, b in zip(x, y, strict=True)]
    return [torch.equal(a, b) for a, b in pairs]


def test_the_first_calls_of_a_process_may_come_from_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert all(pool.apply(first_calls, ([subject.name for subject in WITH_KERNELS],)))


def test_all_operators_at_once_do_not_disturb_each_other() -> None:
    calls = [(subject.run("cpu"), subject.call(seed)) for subject in WITH_KERNELS for seed in range(4)]
    calls += [(s.run("cpu"), s.call(**LARGER[s.name])) for s in WITH_KERNELS if s.name in LARGER]
    jobs = [(function, call, random_cotangents(function, call)) for function, call in calls]
    alone = [evaluate(*job) for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda job: evaluate(*job), jobs * 5))
    for result, reference in zip(together, alone * 5, strict=True):
        for name in reference:
            assert torch.equal(result[name], reference[name]), name
