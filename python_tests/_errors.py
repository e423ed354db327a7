"""The error rule: against float64, an operator errs at most twice as much as stock PyTorch in the same dtype."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, floating_tensors, map_tensors

VALUES, GRADIENTS = 2.0, 3.0

# What a query without any key has for its log-sum-exp.
EMPTY = -torch.inf


@dataclass
class Error:
    """The error of one tensor over several draws, whatever its size."""

    squares: float = 0.0
    elements: int = 0
    largest: float = 0.0

    def add(self, result: Tensor, exact: Tensor) -> None:
        if exact.numel() > 0:
            error = (result.double() - exact).abs()
            self.squares += float(error.square().sum())
            self.elements += error.numel()
            self.largest = float(error.max().clamp(min=self.largest))  # where one is NaN, so is the largest

    @property
    def root_mean_square(self) -> float:
        return (self.squares / max(self.elements, 1)) ** 0.5


@dataclass
class Comparison:
    """A result beside stock PyTorch's in its dtype, over draws: one lucky rounding of torch's is no yardstick."""

    measured: Error = field(default_factory=Error)
    torchs: Error = field(default_factory=Error)
    rounding: Error = field(default_factory=Error)  # of the exact result to its own dtype: what nobody can avoid

    def add(self, result: Tensor, eager: Tensor, exact: Tensor) -> None:
        assert result.shape == exact.shape, f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
        assert result.dtype == eager.dtype, f"{result.dtype}, expected {eager.dtype}"
        assert torch.equal(result == EMPTY, exact == EMPTY)
        finite = exact != EMPTY
        result, eager, exact = result[finite], eager[finite], exact[finite]
        self.measured.add(result, exact)
        self.torchs.add(eager, exact)
        self.rounding.add(exact.to(result.dtype), exact)

    def check(self, name: str, factor: float, norms: Sequence[str]) -> None:
        for norm in norms:
            measured, torchs, rounding = (getattr(e, norm) for e in (self.measured, self.torchs, self.rounding))
            allowed = factor * max(torchs, rounding)
            assert measured <= allowed, (
                f"{name}, {norm}: measured error {measured:.3e}, allowed {allowed:.3e}, torch's {torchs:.3e}"
            )


def evaluate(
    function: Callable[..., Any], call: Call, cotangents: Sequence[Tensor], wanted: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The floating outputs by number, and the gradients of the ``wanted`` floating arguments (None: of all) by "d " +
    name."""
    call = map_tensors(call, Tensor.detach)  # where it lies: no copy keeps gaps between numbers
    leaves = {name: t for name, t in floating_tensors(call).items() if wanted is None or name in wanted}
    for leaf in leaves.values():
        leaf.requires_grad_()
    result = function(**call)
    outputs = result if isinstance(result, tuple) else (result,)
    pairs = [(out, d) for out, d in zip(outputs, cotangents, strict=True) if out.requires_grad]
    gradients: Sequence[Tensor] = []
    if leaves:
        outs, d_outs = [out for out, _ in pairs], [d.to(out.dtype) for out, d in pairs]
        gradients = torch.autograd.grad(outs, list(leaves.values()), d_outs, allow_unused=True, materialize_grads=True)
    named = {f"output {i}": out.detach() for i, out in enumerate(outputs) if out.is_floating_point()}
    return named | {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def random_cotangents(function: Callable[..., Any], call: Call, seed: int = 0) -> list[Tensor]:
    """One random gradient an output, in the output's dtype and on its device."""
    with torch.no_grad():
        result = function(**call)
    generator = torch.Generator().manual_seed(seed)
    outputs = result if isinstance(result, tuple) else (result,)
    return [torch.randn(out.shape, generator=generator).to(out) for out in outputs]


def assert_obeys_the_error_rule(
    function: Callable[..., Any],
    eager: Callable[..., Any],
    exact: Callable[..., Any],
    draw: Callable[[int], Call],
    *,
    draws: int = 3,
    norms: Sequence[str] = ("root_mean_square", "largest"),
    wanted: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> None:
    """Every output and gradient of ``function`` on calls ``draw(0)``, ``draw(1)``, ... beside ``eager``'s.

    ``exact`` gets the same numbers in float64.
    """
    comparisons: dict[str, Comparison] = defaultdict(Comparison)
    for seed in range(draws):
        call = draw(seed)
        cotangents = random_cotangents(eager, call, seed)
        doubled = map_tensors(call, lambda tensor: tensor.double())
        results = [
            evaluate(function, call, cotangents, wanted),
            evaluate(eager, call, cotangents, wanted),
            evaluate(exact, doubled, cotangents, wanted),
        ]
        for name in results[0]:
            if name not in skip:
                comparisons[name].add(*(result[name] for result in results))
    for name, comparison in comparisons.items():
        comparison.check(name, VALUES if name.startswith("output") else GRADIENTS, norms)
