"""Whether a result is right: its error against float64, beside that of the stock form in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# How much larger than the stock form's an error may be: of an output, and of a gradient.
OUTPUT_RULE, GRADIENT_RULE = 2.0, 3.0


@dataclass(frozen=True)
class Verdict:
    """One quantity's error, and what it may be."""

    quantity: str
    ours: float
    stock: float
    rule: float
    truth: str = "float64"

    @property
    def passes(self) -> bool:
        return self.ours <= self.rule * self.stock  # false for a NaN

    def __str__(self) -> str:
        comparison = "within" if self.passes else "BEYOND"
        return (
            f"{self.quantity}: error {self.ours:.2e} against {self.truth}, stock PyTorch's {self.stock:.2e}, "
            f"{comparison} {self.rule:g} times that"
        )


def error(result: Tensor, exact: Tensor) -> float:
    """The largest deviation, relative to the largest value."""
    return float((result.detach().double() - exact).abs().max() / exact.abs().max())


def errors(results: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Of a contender that does only a part of the work, the first ones."""
    return [error(result, reference) for result, reference in zip(results, exact, strict=False)]


def judge(
    quantities: Sequence[str], outputs: int, ours: Sequence[float], stock: Sequence[float], truth: str = "float64"
) -> list[Verdict]:
    """The first ``outputs`` quantities are outputs, the rest gradients."""
    rules = [OUTPUT_RULE if i < outputs else GRADIENT_RULE for i in range(len(quantities))]
    return [Verdict(*row, truth) for row in zip(quantities, ours, stock, rules, strict=True)]
