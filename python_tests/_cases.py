"""Calls of the operators as dictionaries of their arguments, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vr_kernels

Call = dict[str, Any]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def random_index(generator: torch.Generator, windows: int, slots: int, rows: int, *, absent: float = 0.25) -> Tensor:
    """(N, K) rows with repetitions, some absent; the first of several windows has no key at all, the last one has."""
    index = torch.randint(rows, (windows, slots), generator=generator)
    index[torch.rand(index.shape, generator=generator) < absent] = -1
    index[0] = -1
    index[-1, 0] = 0
    return index


class Geometry(NamedTuple):
    """Leading sizes of the queries and of the features, N, K, and the index of the indexed form."""

    leading: tuple[int, ...]
    rows: tuple[int, ...]
    count: int
    slots: int
    window_index: Tensor | None

    @classmethod
    def draw(
        cls, g: torch.Generator, form: str, batch: int, windows: tuple[int, int], window: tuple[int, int]
    ) -> Geometry:
        """``form`` is "grid"; "indexed", as many rows read at random; or "ragged", overlapping pooling windows."""
        height, width = windows[0] * window[0], windows[1] * window[1]
        count, slots = batch * windows[0] * windows[1], window[0] * window[1]
        if form == "grid":
            return cls((batch, *windows), (batch, height, width), count, slots, None)
        if form == "indexed":
            index = random_index(g, count, slots, batch * height * width)
        else:
            height, width = max(height - 1, 1), max(width - 1, 1)
            index = vr_kernels.window_index_from_grid(height, width, *windows, batch=batch)
        return cls((count,), (batch * height * width,), count, index.shape[1], index)


def attention_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    indexed: bool = False,
    ragged: bool = False,
    batch: int = 2,
    windows: tuple[int, int] = (2, 3),
    window: tuple[int, int] = (2, 3),
    heads: int = 4,
    kv_heads: int = 2,
    width: int | Sequence[int] = 8,
    value_width: int | None = None,
    bias: str | None = None,
    saliency: bool = False,
    peaked: float = 1.0,
    empty: int | None = None,
    **options: Any,
) -> Call:
    """Arguments of ``local_attention``. Widths in a sequence are levels; ``bias`` is "shared" or "per window"; the
    window numbered ``empty`` has no key."""
    g = torch.Generator().manual_seed(seed)
    form = "ragged" if ragged else "indexed" if indexed else "grid"
    leading, rows, count, slots, index = Geometry.draw(g, form, batch, windows, window)
    if empty is not None and index is not None:
        index[empty] = -1
    total = width if isinstance(width, int) else sum(width)
    call: Call = {"query": randn(g, *leading, heads, total, dtype=dtype, scale=peaked)}
    if isinstance(width, int):
        call["key"] = randn(g, *rows, kv_heads, width, dtype=dtype)
    else:
        call["key"] = [randn(g, *rows, level, dtype=dtype) for level in width]
    if value_width is not None:
        call["value"] = randn(g, *rows, kv_heads, value_width, dtype=dtype)
    if index is not None:
        call["window_index"] = index
    if bias is not None:
        shape = (heads, slots) if bias == "shared" else (count, heads, slots)
        call["attention_bias"] = randn(g, *shape, dtype=dtype)
    if saliency:
        call["saliency"] = torch.rand(rows, generator=g).to(dtype)
    return call | options


def cross_attention_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    auxiliary: torch.dtype | None = None,
    indexed: bool = False,
    ragged: bool = False,
    batch: int = 2,
    windows: tuple[int, int] = (2, 3),
    window: tuple[int, int] = (2, 3),
    heads: int = 4,
    head_dim: int = 8,
    widths: Sequence[int] = (16, 8, 24),
    biases: bool = False,
    norm: str | None = None,
    norm_shift: bool = True,
    bias: str | None = None,
    saliency: str | None = None,
    peaked: float = 1.0,
    empty: int | None = None,
    **options: Any,
) -> Call:
    """Arguments of ``local_cross_attention``; ``auxiliary`` is the dtype of norm, biases and saliency, and the window
    numbered ``empty`` has no key."""
    g = torch.Generator().manual_seed(seed)
    other = auxiliary or dtype
    form = "ragged" if ragged else "indexed" if indexed else "grid"
    leading, rows, count, slots, index = Geometry.draw(g, form, batch, windows, window)
    if empty is not None and index is not None:
        index[empty] = -1
    inner, channels = heads * head_dim, sum(widths)
    call: Call = {
        "query": randn(g, *leading, inner, dtype=dtype, scale=peaked),
        # Levels of different scale and mean, as an encoder's are.
        "features": [
            (randn(g, *rows, width) * (1 + level) + level / 2).to(dtype) for level, width in enumerate(widths)
        ],
        "key_weight": randn(g, inner, channels, dtype=dtype, scale=channels**-0.5),
        "value_weight": randn(g, inner, channels, dtype=dtype, scale=channels**-0.5),
        "num_heads": heads,
    }
    if index is not None:
        call["window_index"] = index
    if biases:
        call["key_bias"] = randn(g, inner, dtype=other)
        call["value_bias"] = randn(g, inner, dtype=other)
    if norm is not None:
        call["norm_weight"] = 1 + randn(g, channels, dtype=other, scale=0.5)
        call["norm_groups"] = norm
        if norm_shift:
            call["norm_bias"] = randn(g, channels, dtype=other, scale=0.5)
    if bias is not None:
        shape = (heads, slots) if bias == "shared" else (count, heads, slots)
        call["attention_bias"] = randn(g, *shape, dtype=other)
    if saliency is not None:
        call["saliency"] = torch.rand(rows, generator=g).to(other)
        call["saliency_on"] = saliency
    return call | options


def map_tensors(call: Call, function: Callable[[Tensor], Tensor]) -> Call:
    """The call with ``function`` applied to its floating tensors, those in lists too."""

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(item) for item in value]
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: change(value) for name, value in call.items()}


def leading_argument(call: Call) -> str:
    """Whose dtype and device the others share: query, or what stands for it."""
    return next(iter(call))


def floating_tensors(call: Call) -> dict[str, Tensor]:
    """The call's floating tensors by name; ``features[1]`` for those in lists."""
    found = {}
    for name, value in call.items():
        items = {f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
        found.update({k: v for k, v in items.items() if isinstance(v, Tensor) and v.is_floating_point()})
    return found
