"""How far two results are apart: outputs, gradients with respect to inputs and weights, and which tokens are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32)

# Theirs, and ours or the several of ours that theirs joins along its first dimension.
Pair = tuple[Tensor, Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One comparison. An error is the largest difference, relative to the largest entry of theirs."""

    method: str
    case: str
    dtype: str
    outputs: float | None  # of the runs with the same tokens; None where there is none, or tokens alone are compared
    gradients: float | None = None
    variant: str = ""  # of their code or of the inputs
    same: int | None = None  # in how many of ``runs`` both keep the same tokens
    runs: int = 1
    own: int | None = None  # in how many theirs keeps the tokens of another draw of its noise, or of its float64


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest entry of theirs; by itself where that is zero."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    if not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        raise ValueError("a result is not finite")
    largest, difference = float(theirs.abs().max()), float((ours - theirs).abs().max())
    return difference / largest if largest else difference


def joined(ours: Tensor | Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Ours as theirs is laid out: a 1 × 1 convolution's weight and a Linear's have the same entries."""
    whole = ours if isinstance(ours, Tensor) else torch.cat(tuple(ours))
    return whole.reshape(shape)


@torch.no_grad()
def copy_weights(pairs: Sequence[Pair]) -> None:
    """From theirs into ours."""
    for theirs, ours in pairs:
        parts = (ours,) if isinstance(ours, Tensor) else tuple(ours)
        for part, value in zip(parts, theirs.chunk(len(parts)), strict=True):
            part.copy_(value.reshape(part.shape))


def layers(*modules: tuple[nn.Module, nn.Module]) -> list[Pair]:
    """The pairs of weights and biases of (theirs, ours)."""
    return [
        (weight, getattr(ours, name))
        for theirs, ours in modules
        for name, weight in theirs.named_parameters(recurse=False)
    ]


def by_name(theirs: nn.Module, ours: nn.Module) -> list[Pair]:
    """The pairs of all that learns, where both have the same names."""
    mine = dict(ours.named_parameters())
    learned = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
    if learned.keys() != mine.keys():
        raise ValueError(f"theirs has {sorted(learned)}, ours {sorted(mine)}")
    return [(weight, mine[name]) for name, weight in learned.items()]


def gradient_error(theirs: Tensor, ours: Tensor, pairs: Sequence[Pair], inputs: Sequence[Tensor]) -> float:
    """The worst of all inputs and weights.

    A gradient that is zero but for rounding (that of a bias which all keys of a softmax share) has no largest entry to
    relate to: there both have to be below a hundred roundings of the largest gradient.
    """
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [*((tensor, tensor) for tensor in inputs), *pairs]
    mine = [[ours_of] if isinstance(ours_of, Tensor) else list(ours_of) for _, ours_of in pairs]
    expected = torch.autograd.grad(theirs, [pair[0] for pair in pairs], upstream.to(theirs.dtype))
    found = iter(
        torch.autograd.grad(
            ours, [part for parts in mine for part in parts], upstream.to(ours.dtype), retain_graph=True
        )
    )
    got = [joined([next(found) for _ in parts], value.shape) for parts, value in zip(mine, expected, strict=True)]
    largest = max(float(value.abs().max()) for value in expected)
    negligible = 100 * torch.finfo(theirs.dtype).eps * largest
    errors = [0.0]
    for value, of_ours in zip(expected, got, strict=True):
        if max(float(value.abs().max()), float(of_ours.abs().max())) > negligible:
            errors.append(relative_error(of_ours, value))
    return max(errors)


def compare(
    method: str,
    case: str,
    theirs: Tensor,
    ours: Tensor,
    pairs: Sequence[Pair],
    inputs: Sequence[Tensor],
    *,
    variant: str = "",
) -> Row:
    """Outputs and gradients of two graphs on the same ``inputs``, whose weights are in ``pairs``."""
    gradients = gradient_error(theirs, ours, pairs, inputs)
    return Row(method, case, name_of(ours.dtype), relative_error(ours, theirs), gradients, variant)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """The same numbers in every dtype, but for rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed).requires_grad_()


@torch.no_grad()
def randomise(module: nn.Module, seed: int, *, gain: float = 1.0, mean: float = 0.8, spread: float = 0.3) -> None:
    """Weights that keep the scale of what they are given; vectors around ``mean``, so that no norm or bias is idle."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scaled = gain * drawn / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else mean + spread * drawn
            parameter.copy_(scaled)
