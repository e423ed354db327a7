"""What the operators of importance share: what they check of a call, what backends see of it, how weights reduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature
from vr_kernels.ops._dispatch import Request
from vr_kernels.ops._sequences import check_cu_seqlens

KINDS = ("mean", "sum", "max")


def reduce(weights: Tensor, kind: str | None, dim: int) -> Tensor:
    """``weights`` with ``dim`` reduced away; as they are for None. Equal largest ones share a gradient."""
    if kind is None:
        return weights
    if kind == "mean":
        return weights.mean(dim)
    return weights.sum(dim) if kind == "sum" else weights.amax(dim)


@dataclass(frozen=True, kw_only=True)
class ImportanceRequest(Request):
    """Rows of queries that score the tokens of their own sequence."""

    sequences: int  # B or S
    rows: int  # that ask in a sequence; in the packed form of attention_received, tokens in all
    tokens: int  # N of a sequence, or T of all that are packed
    heads: int
    kv_heads: int
    width: int
    packed: bool


def check_rows(arguments: Arguments, query_rows: Any, key: Any, key_mask: Any, cu_seqlens: Any) -> ImportanceRequest:
    """A call of a few rows: query_rows (B, R, h, d) with key (B, N, h_kv, d), or packed with key (T, h_kv, d)."""
    q = arguments.tensor(arguments.query, query_rows)
    arguments.floating(arguments.query, q)
    arguments.rank(arguments.query, q, {4: "(B, R, h, d)"})
    k = arguments.companion("key", key, q)
    packed = cu_seqlens is not None
    arguments.rank("key", k, {3: "(T, h_kv, d) with cu_seqlens"} if packed else {4: "(B, N, h_kv, d)"})
    arguments.heads(q, k)
    sequences, rows = q.shape[:2]
    if rows == 0:
        raise arguments.error(f"{arguments.query} has 0 rows; it must have at least 1")
    if packed:
        check_cu_seqlens(arguments, cu_seqlens, q, sequences)
        if key_mask is not None:
            raise arguments.error("key_mask is given with cu_seqlens; a packed key holds only tokens that count")
    elif k.shape[0] != sequences:
        raise arguments.error(f"key has batch {k.shape[0]}, {arguments.query} has {sequences}; they must be equal")
    arguments.mask("key_mask", key_mask, q, k.shape[:2])
    return _request(q, k, sequences=sequences, rows=rows, packed=packed)


def check_received(query: Any, key: Any, cu_seqlens: Any, lse: Any) -> ImportanceRequest:
    """A call in which every token asks: query (B, N, h, d) or packed (T, h, d)."""
    arguments = Arguments("attention_received")
    q = arguments.tensor("query", query)
    arguments.floating("query", q)
    packed = cu_seqlens is not None
    arguments.rank("query", q, {3: "(T, h, d) with cu_seqlens"} if packed else {4: "(B, N, h, d)"})
    k = arguments.companion("key", key, q)
    if len(k.shape) != len(q.shape) or k.shape[:-2] != q.shape[:-2]:
        form = (*q.shape[:-2], "h_kv", q.shape[-1])
        raise arguments.error(f"key has shape {k.shape}; it must be ({', '.join(map(str, form))})")
    arguments.heads(q, k)
    sequences = check_cu_seqlens(arguments, cu_seqlens, q) if packed else q.shape[0]
    arguments.auxiliary("lse", lse, q, [q.shape[:-1]])
    return _request(q, k, sequences=sequences, rows=q.shape[-3], packed=packed)


def _request(q: Signature, k: Signature, *, sequences: int, rows: int, packed: bool) -> ImportanceRequest:
    return ImportanceRequest(
        q.device.type,
        q.dtype,
        sequences=sequences,
        rows=rows,
        tokens=k.shape[-3],
        heads=q.shape[-2],
        kv_heads=k.shape[-2],
        width=q.shape[-1],
        packed=packed,
    )


def typical_rows(device: str, dtype: torch.dtype) -> ImportanceRequest:
    """The CLS row of CLIP-ViT-L/14-336 over five tiles."""
    return ImportanceRequest(
        device, dtype, sequences=5, rows=1, tokens=577, heads=16, kv_heads=16, width=64, packed=False
    )


def typical_columns(device: str, dtype: torch.dtype) -> ImportanceRequest:
    """All rows of SigLIP-SO400M/14-384 over five tiles."""
    return ImportanceRequest(
        device, dtype, sequences=5, rows=729, tokens=729, heads=16, kv_heads=16, width=72, packed=False
    )
