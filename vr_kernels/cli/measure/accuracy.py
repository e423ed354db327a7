"""Whether a result is right: its error against float64, beside that of the naive form in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vr_kernels.cli.measure.cases import Inputs
from vr_kernels.cli.measure.contenders import Contender, naive

# How much larger than the naive form's an error may be: of the output, and of a gradient.
OUTPUT_RULE, GRADIENT_RULE = 2.0, 3.0
QUANTITIES = ("output", "query gradient", "key_weight gradient", "value_weight gradient")


@dataclass(frozen=True)
class Verdict:
    """One quantity's error, and what it may be."""

    quantity: str
    ours: float
    naive: float
    rule: float

    @property
    def passes(self) -> bool:
        return self.ours <= self.rule * self.naive  # false for a NaN

    def __str__(self) -> str:
        comparison = "within" if self.passes else "BEYOND"
        return (
            f"{self.quantity}: error {self.ours:.2e} against float64, naive {self.naive:.2e}, "
            f"{comparison} {self.rule:g} times that"
        )


def float64_results(x: Inputs) -> tuple[Tensor, ...]:
    """The naive form in float64, image by image: its windows are held for one image at a time."""
    in_float64 = Contender("float64", "naive in float64", naive)
    images = [in_float64(x.to_float64(image)) for image in range(x.query.shape[0])]
    columns = list(zip(*images, strict=True))
    of_tokens = [torch.cat(column) for column in columns[:2]]  # output and query gradient
    of_weights = [torch.stack(column).sum(0) for column in columns[2:]]
    return tuple(exact.detach() for exact in (*of_tokens, *of_weights))


def error(result: Tensor, exact: Tensor) -> float:
    """The largest deviation, relative to the largest value."""
    return float((result.detach().double() - exact).abs().max() / exact.abs().max())


def errors(results: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [error(result, reference) for result, reference in zip(results, exact, strict=True)]


def judge(ours: Sequence[float], naive: Sequence[float]) -> list[Verdict]:
    rules = (OUTPUT_RULE, *[GRADIENT_RULE] * (len(QUANTITIES) - 1))
    return [Verdict(*row) for row in zip(QUANTITIES, ours, naive, rules, strict=False)]
