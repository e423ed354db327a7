"""Calls of every public operator that are right, drawn by hypothesis: what the fuzzer then spoils."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch

import vr_kernels
from python_tests import _importance, _patch_cases, _token_cases
from python_tests._cases import Call, attention_call, cross_attention_call, randn
from python_tests._deformable_cases import deformable_call

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = st.sampled_from((1, 2, 3, 5))
WIDTHS = st.sampled_from((1, 2, 7, 8, 17))
PAIRS = st.tuples(SIZES, SIZES)
FLAGS = st.booleans()
REDUCTIONS = st.sampled_from(("mean", "sum", "max"))


@dataclass(frozen=True)
class Target:
    """An operator, and how its calls are made: ``build`` of a seed, a dtype and what ``spec`` draws."""

    function: Callable[..., Any]
    build: Callable[..., Call]
    spec: dict[str, st.SearchStrategy[Any]]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.function).parameters)

    def calls(self) -> st.SearchStrategy[Call]:
        return st.builds(self.build, st.integers(0, 2**16), dtype=st.sampled_from(DTYPES), **self.spec)


def bidirectional_call(
    seed: int,
    *,
    dtype: torch.dtype,
    batch: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    packed: bool,
    guide: bool,
    masks: bool,
) -> Call:
    g = torch.Generator().manual_seed(seed)
    leading = (batch * tokens,) if packed else (batch, tokens)
    call: Call = {
        "query": randn(g, *leading, heads * kv_heads, width, dtype=dtype),
        "key": randn(g, *leading, kv_heads, width, dtype=dtype),
        "value": randn(g, *leading, kv_heads, width, dtype=dtype),
    }
    if packed:
        call["cu_seqlens"] = _importance.bounds(g, batch, batch * tokens)
    elif masks:
        call["key_mask"] = torch.rand(leading, generator=g) < 0.7
    if guide:
        call |= {name: randn(g, batch, kv_heads, width, dtype=dtype) for name in ("guide_key", "guide_value")}
        if masks:
            call["guide_mask"] = torch.rand(batch, generator=g) < 0.7
    return call


def saliency_call(seed: int, *, dtype: torch.dtype, batch: int, tokens: int, heads: int, **options: Any) -> Call:
    g = torch.Generator().manual_seed(seed)
    query, key = randn(g, batch, 2 * heads, 8, dtype=dtype), randn(g, batch, tokens, heads, 8, dtype=dtype)
    return {"cls_query": query, "key": key} | options


def density_call(seed: int, *, dtype: torch.dtype, batch: int, tokens: int) -> Call:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, tokens, generator=g) < 0.5
    return {"attention": torch.rand(batch, tokens, generator=g).to(dtype), "vision_mask": mask}


def selection_call(seed: int, *, dtype: torch.dtype, batch: int, tokens: int) -> Call:
    g = torch.Generator().manual_seed(seed)
    count = int(torch.randint(tokens + 1, (), generator=g))
    return {"scores": randn(g, batch, tokens, dtype=dtype), "count": count}


def merge_call(seed: int, *, dtype: torch.dtype, batch: int, tokens: int, width: int, kept: int, merge: str) -> Call:
    g = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(tokens + kept, generator=g)[:kept] for _ in range(batch)])
    hidden = randn(g, batch, tokens + kept, width, dtype=dtype)
    count = int(torch.randint(tokens + 1, (), generator=g))
    return {"hidden": hidden, "metric": hidden.clone(), "count": count, "kept": rows, "merge": merge}


def grid_call(seed: int, *, dtype: torch.dtype, height: int, width: int, n_h: int, n_w: int, batch: int) -> Call:
    index = torch.int32 if seed % 2 else torch.int64
    return {"height": height, "width": width, "n_h": n_h, "n_w": n_w, "batch": batch, "dtype": index}


def gather_call(seed: int, *, images: int | None, guide: bool, **options: Any) -> Call:
    return _token_cases.gather_call(seed, images=images, guide=guide, **options)


TOKEN_SIZES: dict[str, Any] = {"batch": SIZES, "tokens": st.sampled_from((1, 2, 5, 9))}
STREAM_SIZES: dict[str, Any] = {"batch": SIZES, "length": SIZES, "width": WIDTHS}
WINDOW_SIZES: dict[str, Any] = {
    "batch": SIZES,
    "windows": PAIRS,
    "window": PAIRS,
    "indexed": FLAGS,
    "ragged": FLAGS,
    "bias": st.sampled_from((None, "shared", "per window")),
}
HEADS: dict[str, Any] = {"heads": st.sampled_from((2, 4, 6)), "kv_heads": st.sampled_from((1, 2)), "width": WIDTHS}

TARGETS = (
    Target(
        vr_kernels.local_attention,
        attention_call,
        WINDOW_SIZES
        | HEADS
        | {
            "value_width": st.sampled_from((None, 3, 8)),
            "saliency": FLAGS,
            "return_lse": FLAGS,
            "return_attention": FLAGS,
        },
    ),
    Target(
        vr_kernels.local_cross_attention,
        cross_attention_call,
        WINDOW_SIZES
        | {
            "heads": SIZES,
            "head_dim": st.sampled_from((1, 3, 8)),
            # None of two: the norm of two numbers that are almost one has no digits to compare.
            "widths": st.sampled_from(((5,), (8, 3), (1, 7, 16))),
            "biases": FLAGS,
            "norm": st.sampled_from((None, "all", "level")),
            "saliency": st.sampled_from((None, "value", "feature")),
            "return_attention": FLAGS,
        },
    ),
    Target(
        vr_kernels.bidirectional_attention,
        bidirectional_call,
        TOKEN_SIZES
        | {"heads": SIZES, "kv_heads": SIZES, "width": WIDTHS, "packed": FLAGS, "guide": FLAGS, "masks": FLAGS},
    ),
    Target(
        vr_kernels.attention_importance,
        _importance.importance_call,
        TOKEN_SIZES
        | HEADS
        | {"rows": SIZES, "packed": FLAGS, "reduce_heads": st.none() | REDUCTIONS, "reduce_rows": REDUCTIONS},
    ),
    Target(
        vr_kernels.attention_received,
        _importance.received_call,
        TOKEN_SIZES | HEADS | {"packed": FLAGS, "causal": FLAGS, "lse": FLAGS, "reduce_heads": st.none() | REDUCTIONS},
    ),
    Target(
        vr_kernels.cls_saliency,
        saliency_call,
        TOKEN_SIZES
        | {
            "heads": SIZES,
            "source": st.sampled_from(("logits", "probs")),
            "reduce": REDUCTIONS | st.just("mean_of_sigmoid"),
        },
    ),
    Target(vr_kernels.text_guide_token, _token_cases.text_guide_call, STREAM_SIZES | {"ties": FLAGS}),
    Target(
        vr_kernels.gather_tokens,
        gather_call,
        STREAM_SIZES | {"tokens": SIZES, "images": st.none() | SIZES, "norm": FLAGS, "guide": FLAGS},
    ),
    Target(vr_kernels.scatter_add_tokens, _token_cases.scatter_call, STREAM_SIZES | {"tokens": SIZES}),
    Target(
        vr_kernels.deformable_attention,
        deformable_call,
        {
            "batch": SIZES,
            "queries": SIZES,
            "heads": SIZES,
            "width": WIDTHS,
            "sizes": st.lists(PAIRS, min_size=1, max_size=3),
            "points": SIZES,
            "auxiliary": st.sampled_from((None, torch.float32)),
        },
    ),
    Target(
        vr_kernels.patch_linear,
        _patch_cases.patch_call,
        {
            "batch": SIZES,
            "patches": PAIRS,
            "kernel": st.sampled_from((1, 2, 3)),
            "widths": WIDTHS | st.just((3, 8, 1)),
            "out": WIDTHS,
            "bias": FLAGS,
            "activation": st.sampled_from((None, "gelu")),
        },
    ),
    Target(vr_kernels.attention_density, density_call, TOKEN_SIZES),
    Target(vr_kernels.select_dominant_tokens, selection_call, TOKEN_SIZES),
    Target(
        vr_kernels.merge_contextual_tokens,
        merge_call,
        TOKEN_SIZES | {"width": WIDTHS, "kept": st.sampled_from((0, 1, 3)), "merge": st.sampled_from(("sum", "mean"))},
    ),
    Target(
        vr_kernels.window_index_from_grid, grid_call, dict.fromkeys(("height", "width", "n_h", "n_w", "batch"), SIZES)
    ),
)
