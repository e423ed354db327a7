"""Paired timing: in every round each contender runs once, so that what slows the machine slows them all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Run = Callable[[], object]
LEAST_SECONDS = 1.0  # of measuring: fast calls get more rounds


class Spread(NamedTuple):
    """The median and the range of the middle 80 %."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(deciles[0], statistics.median(values), deciles[-1])


def paired_seconds(
    runs: Mapping[str, Run], device: str, rounds: int, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Seconds of each run in each round, at least ``rounds`` and LEAST_SECONDS of them, after one round of warming up.

    The order rotates from round to round and turns round every time, so that nobody always follows the same other.
    ``progress`` is told how many rounds are done.
    """
    clock = _CudaClock() if device == "cuda" else _wall_seconds
    for run in runs.values():
        clock(run)
    names, seconds = list(runs), {name: [] for name in runs}  # type: tuple[list[str], dict[str, list[float]]]
    begin, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - begin < LEAST_SECONDS:
        start = done % len(names)
        order = names[start:] + names[:start]
        for name in order if done % 2 == 0 else reversed(order):
            seconds[name].append(clock(runs[name]))
        done += 1
        progress(done)
    return seconds


def ratios(times: list[float], others: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(times, others, strict=True)]


def openmp_note() -> str | None:
    """A warning where waiting threads spin: libgomp reads its policy when it is loaded, too late for us to set it."""
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return None
    return "OMP_WAIT_POLICY=passive is not set: on a busy CPU, threads that spin while they wait distort these times"


def _wall_seconds(run: Run) -> float:
    begin = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - begin
    del result  # freeing it is not part of the call
    return seconds


class _CudaClock:
    """GPU time between two events, with a cold L2: the buffer that is written before is twice as large."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.flush = torch.empty(2 * size, dtype=torch.int8, device="cuda")

    def __call__(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
