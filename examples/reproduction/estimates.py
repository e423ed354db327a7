"""A mean over seeds, and what its interval supports."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over seeds; ``half`` is half of its 95 % interval, infinite for a single seed."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}{self.spread}"

    @property
    def spread(self) -> str:
        return f" ± {self.half:.3f}" if math.isfinite(self.half) else ""


def estimate(values: Sequence[float]) -> Estimate:
    """By Student's t."""
    if len(values) < 2:
        return Estimate(statistics.mean(values), math.inf)
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return Estimate(statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)))


def decided(gain: Estimate, paper: float | None) -> str:
    """What the interval supports, in a word or two; ``paper`` is the gain there, if it has one."""
    if abs(gain.mean) <= gain.half:
        return "no" if math.isfinite(gain.half) else "one seed"
    if not paper:  # the paper has no such comparison, or no difference
        return "yes" if paper is None else "yes, unlike the paper"
    return "yes, as the paper" if (gain.mean > 0) == (paper > 0) else "yes, against the paper"
