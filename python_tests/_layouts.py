"""Ways in which a tensor may lie in memory, and the check that they change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, map_tensors
from python_tests._errors import evaluate, random_cotangents

POISON = 10_000  # not NaN, since an index is laid out so too; a row that nobody has


def last_dimension_strided(tensor: Tensor) -> Tensor:
    return tensor.new_full((*tensor.shape, 2), POISON)[..., 0].copy_(tensor)


def dimensions_reversed(tensor: Tensor) -> Tensor:
    order = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def padded_rows(tensor: Tensor) -> Tensor:
    """Inside a larger tensor, an odd number of elements from its start."""
    padded = tensor.new_full([size + 3 for size in tensor.shape], POISON)
    inner = tuple(slice(1, 1 + size) for size in tensor.shape)
    return padded[inner].copy_(tensor)


LAYOUTS = [last_dimension_strided, dimensions_reversed, padded_rows]


def assert_strides_change_nothing(
    function: Callable[..., Any], call: Call, layout: Callable[[Tensor], Tensor], *, rounding: int = 8
) -> None:
    strided = map_tensors(call, layout)
    if "window_index" in call:
        strided["window_index"] = layout(call["window_index"])
    cotangents = random_cotangents(function, call)
    results = evaluate(function, strided, [layout(cotangent) for cotangent in cotangents])
    assert_equal_up_to_rounding(results, evaluate(function, call, cotangents), rounding)


def assert_equal_up_to_rounding(results: dict[str, Tensor], expected: dict[str, Tensor], rounding: int = 8) -> None:
    """Equal but for what torch's GEMMs sum in another order where their operands are strided otherwise: no further
    apart than so many units of rounding of a result's largest number."""
    for name, result in results.items():
        largest = float(expected[name].nan_to_num(posinf=0, neginf=0).abs().amax()) if result.numel() > 0 else 0.0
        tolerance = rounding * torch.finfo(result.dtype).eps * largest
        torch.testing.assert_close(result, expected[name], rtol=0, atol=tolerance, msg=name)
