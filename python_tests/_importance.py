"""Calls of attention_importance and attention_received, and what they compute a second time: row after row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, randn


def bounds(generator: torch.Generator, sequences: int, tokens: int) -> Tensor:
    """(S + 1,) from 0 to the tokens; of three sequences or more the second is empty."""
    inner = torch.randint(tokens + 1, (sequences - 1,), generator=generator).sort().values
    if sequences > 2:
        inner[1] = inner[0]
    return torch.cat([torch.tensor([0]), inner, torch.tensor([tokens])])


def importance_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    tokens: int = 7,
    rows: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    packed: bool = False,
    mask: bool = False,
    peaked: float = 1.0,
    **options: Any,
) -> Call:
    """Arguments of ``attention_importance``; ``mask`` leaves the first sequence without any key."""
    g = torch.Generator().manual_seed(seed)
    leading = (batch * tokens,) if packed else (batch, tokens)
    call: Call = {
        "query_rows": randn(g, batch, rows, heads, width, dtype=dtype, scale=peaked),
        "key": randn(g, *leading, kv_heads, width, dtype=dtype),
    }
    if packed:
        call["cu_seqlens"] = bounds(g, batch, batch * tokens)
    if mask:
        call["key_mask"] = torch.rand(leading, generator=g) < 0.7
        call["key_mask"][0] = False
        call["key_mask"][-1, 0] = True
    return call | options


def received_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    tokens: int = 7,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    packed: bool = False,
    lse: bool = False,
    peaked: float = 1.0,
    **options: Any,
) -> Call:
    """Arguments of ``attention_received``; a given ``lse`` is not quite the scores' own."""
    g = torch.Generator().manual_seed(seed)
    leading = (batch * tokens,) if packed else (batch, tokens)
    call: Call = {
        "query": randn(g, *leading, heads, width, dtype=dtype, scale=peaked),
        "key": randn(g, *leading, kv_heads, width, dtype=dtype),
    }
    if packed:
        call["cu_seqlens"] = bounds(g, batch, batch * tokens)
    if lse:
        call["lse"] = randn(g, *leading, heads) * 0.3 + math.log(tokens)
    return call | options


def sequences(key: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[int, Tensor, slice]]:
    """The number, the keys (n, h_kv, d) and the tokens of each sequence."""
    if cu_seqlens is None:
        yield from ((i, one, slice(0, key.shape[1])) for i, one in enumerate(key))
    else:
        spans = [slice(*pair) for pair in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
        yield from ((i, key[span], span) for i, span in enumerate(spans))


def scores_of(row: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """One row (h, d) against the keys (n, h_kv, d) that it may see: (h, n)."""
    heads, width = row.shape
    key = key.repeat_interleave(heads // key.shape[-2], -2)
    scale = 1 / math.sqrt(width) if scale is None else scale
    return torch.stack([scale * (row * k).sum(-1) for k in key], -1)


def reduced(tensors: list[Tensor], kind: str | None, dim: int) -> Tensor:
    stacked = torch.stack(tensors, dim)
    return {"mean": stacked.mean, "sum": stacked.sum, "max": stacked.amax}[kind](dim) if kind else stacked


def attention_importance(
    query_rows: Tensor,
    key: Tensor,
    *,
    normalize: str = "softmax",
    reduce_heads: str | None = "mean",
    reduce_rows: str = "mean",
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """What ``vr_kernels.attention_importance`` gives: hidden keys are left out, not masked."""
    results = []
    for i, keys, _ in sequences(key, cu_seqlens):
        count = keys.shape[0]
        seen = torch.arange(count) if key_mask is None else key_mask[i].nonzero().squeeze(-1)
        rows = []
        for row in query_rows[i]:
            weights = row.new_zeros(row.shape[0], count)
            if len(seen) > 0:
                scores = scores_of(row, keys[seen], scale)
                if normalize == "softmax":
                    scores = scores.exp() / scores.exp().sum(-1, keepdim=True)
                weights = weights.index_copy(1, seen, scores)
            rows.append(reduced(list(weights), reduce_heads, 0))  # ([h,] n)
        results.append(reduced(rows, reduce_rows, 0))
    return torch.stack(results) if cu_seqlens is None else torch.cat(results, -1)


def attention_received(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: str | None = "mean",
    scale: float | None = None,
) -> Tensor:
    """What ``vr_kernels.attention_received`` gives: columns that a row does not see are left out, not masked."""
    results = []
    for i, keys, span in sequences(key, cu_seqlens):
        queries, count = (query[i], keys.shape[0]) if cu_seqlens is None else (query[span], keys.shape[0])
        shifts = None if lse is None else lse[i] if cu_seqlens is None else lse[span]
        total = query.new_zeros(query.shape[-2], count)
        for n, row in enumerate(queries):
            visible = n + 1 if causal else count
            scores = scores_of(row, keys[:visible], scale)
            shift = scores.logsumexp(-1) if shifts is None else shifts[n]
            weights = (scores - shift[:, None]).exp()
            total = total + torch.cat([weights, weights.new_zeros(len(weights), count - visible)], -1)
        results.append(reduced(list(total), reduce_heads, 0) / max(count, 1))
    return torch.stack(results) if cu_seqlens is None else torch.cat(results, -1)
