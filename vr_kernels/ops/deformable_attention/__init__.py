"""``deformable_attention``: every query mixes a few bilinear samples of every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, Signature, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, Request, experimental, register
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops._triton import support
from vr_kernels.ops.deformable_attention import op, reference, stock

__all__ = ["deformable_attention"]

PLAIN = {"grid_sample": stock.deformable_attention, "reference": reference.deformable_attention}


def deformable_attention(
    value: Tensor | Sequence[Tensor],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, Eq. 3).

    ``out_q = sum_l sum_p weight_qlp * value_l(location_qlp)`` for each head by itself, value_l(.) bilinear between the
    features of level l and zero outside. Locations run from 0 to 1 over a level, edge to edge: feature i of n has its
    centre at (i + 1/2) / n (``align_corners=False``). Sums are float32 (float64 for float64 inputs).

    Args:
        value: a level or a sequence of L levels (B, H_l, W_l, h, d), grids of any sizes, any strides; float32,
            bfloat16, float16, float64.
        sampling_locations: (B, Q, h, L, P, 2), each (x, y); the values' dtype or float32. In bfloat16 a location is
            rounded to about 1/256 of the grid: keep them float32. A location that is no number is outside.
        attention_weights: (B, Q, h, L, P), used as they are: a softmax over (L, P) is the caller's; dtypes as above.
        backend: None chooses; "cpu", "triton", "grid_sample" or "reference" by name: it runs or it raises.

    Returns:
        (B, Q, h, d) in the values' dtype. Differentiable once, in reverse mode, in every input; the gradient of a
        location is that of its cell, the one to the right of and below a feature hit exactly. No sum is atomic but
        those of "grid_sample" on CUDA, which ``torch.use_deterministic_algorithms(True)`` passes over.

    Raises:
        ValueError: shapes or devices that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> value = [torch.ones(1, 4, 4, 2, 8), torch.ones(1, 2, 2, 2, 8)]  # two levels, 2 heads
    >>> places, weights = torch.full((1, 3, 2, 2, 4, 2), 0.5), torch.full((1, 3, 2, 2, 4), 1 / 8)
    >>> out = deformable_attention(value, places, weights)
    >>> out.shape, torch.allclose(out, torch.ones(()))
    (torch.Size([1, 3, 2, 8]), True)
    """
    levels: list[Tensor] = [*value] if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]
    if levels:
        # Locations and weights stay as exact as they came: in float32 they are welcome.
        levels = cast_for_autocast(levels[0], levels)[1]
    given = signatures(sampling_locations, attention_weights, *levels)
    chosen = _plan(given, torch.are_deterministic_algorithms_enabled(), backend)
    if chosen in PLAIN:
        return PLAIN[chosen](levels, sampling_locations, attention_weights)
    out: Tensor = op.run(levels, sampling_locations, attention_weights, chosen)
    return out


@dataclass(frozen=True, kw_only=True)
class DeformableRequest(Request):
    """A deformable attention call, as its backends see it."""

    deterministic: bool  # whether torch was asked to compute so
    empty: bool = False  # no image, or a level without features
    points: int = 4


def _check(given: tuple[Any, ...], deterministic: bool) -> DeformableRequest:
    """Everything that can be refused from the signatures of locations, weights and levels alone."""
    locations, weights, *values = given
    arguments = Arguments("deformable_attention", "value")
    levels = _check_levels(arguments, values)
    batch, _, _, heads, _ = levels[0].shape
    places = arguments.tensor("sampling_locations", locations)
    arguments.rank("sampling_locations", places, {6: "(B, Q, h, L, P, 2)"})
    queries, points = places.shape[1], places.shape[4]
    shape = (batch, queries, heads, len(levels), points)
    arguments.auxiliary("sampling_locations", locations, levels[0], [(*shape, 2)])
    arguments.tensor("attention_weights", weights)
    arguments.auxiliary("attention_weights", weights, levels[0], [shape])
    empty = batch == 0 or any(level.shape[1] * level.shape[2] == 0 for level in levels)
    return DeformableRequest(
        levels[0].device.type, levels[0].dtype, deterministic=deterministic, empty=empty, points=points
    )


def _check_levels(arguments: Arguments, values: Sequence[Any]) -> list[Signature]:
    if not values:
        raise arguments.error("value is an empty sequence; it must hold at least one level")
    names = ["value"] if len(values) == 1 else [f"value[{i}]" for i in range(len(values))]
    first = arguments.tensor(names[0], values[0])
    arguments.floating(names[0], first)
    levels = []
    for name, value in zip(names, values, strict=True):
        level = arguments.companion(name, value, first)
        arguments.rank(name, level, {5: "(B, H, W, h, d)"})
        batch, _, _, heads, width = level.shape
        if heads == 0 or width == 0:
            raise arguments.error(f"{name} has {heads} heads of width {width}; both must be at least 1")
        if (batch, heads, width) != (first.shape[0], *first.shape[3:]):
            raise arguments.error(
                f"{name} has shape {level.shape}, {names[0]} has {first.shape}; "
                "all levels must share batch, heads and width"
            )
        levels.append(level)
    return levels


def _request(value: Any, sampling_locations: Any, attention_weights: Any) -> DeformableRequest:
    levels: list[Any] = [*value] if isinstance(value, (list, tuple)) else [value]
    if levels:
        levels = cast_for_autocast(levels[0], levels, cast=stand_in)[1]
    given = signatures(sampling_locations, attention_weights, *levels)
    return _check(given, torch.are_deterministic_algorithms_enabled())


@remember
def _plan(given: tuple[Any, ...], deterministic: bool, backend: str | None) -> str:
    return OPERATOR.select(_check(given, deterministic), backend)


LARGEST_POINTS = 64  # of one head in one level, which Triton's kernels take at once


def _refuses_triton(request: DeformableRequest) -> str | None:
    if not 1 <= request.points <= LARGEST_POINTS:
        return f"the Triton kernels take 1 to {LARGEST_POINTS} points a level, these are {request.points}"
    return support.refuses(request)


def _refuses_empty(request: DeformableRequest) -> str | None:
    return "grid_sample takes no empty batch and no level without features" if request.empty else None


def _atomic(request: DeformableRequest) -> str | None:
    if request.device == "cuda" and request.deterministic:
        return "torch is asked for deterministic algorithms, and grid_sample's gradient on CUDA is a sum of atomics"
    return None


def _typical_request(device: str, dtype: torch.dtype) -> DeformableRequest:
    return DeformableRequest(device, dtype, deterministic=False)


OPERATOR: Operator[DeformableRequest] = Operator(
    "deformable_attention",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=_refuses_triton, passed_over=experimental),
        Backend("grid_sample", refuses=_refuses_empty, passed_over=_atomic),
        Backend("reference"),
    ),
    _request,
    _typical_request,
)
register(deformable_attention, OPERATOR)
