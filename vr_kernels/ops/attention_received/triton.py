"""Attention received by Triton: the launches. Triton itself is imported by the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._sequences import check_cu_seqlens_values, sequence_of_tokens
from vr_kernels.ops._triton.heads import Heads, head_block, tensor_cores


def forward(
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """As ``blocked.forward``."""
    from vr_kernels.ops.attention_received.triton_kernels import received_forward

    *batch, tokens, heads, _ = query.shape
    check_cu_seqlens_values("attention_received", cu_seqlens, tokens)
    columns = query.new_empty(*batch, heads, tokens, dtype=torch.float32)
    if columns.numel() > 0:
        problem = _problem(query, key, cu_seqlens, causal, scale)
        with torch.cuda.device_of(columns):
            p_lse = _log_sum_exp(lse, columns, problem)
            received_forward[(_programs(query, heads),)](p_lse=p_lse, p_columns=columns, **problem)
    return columns


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
    needs: Sequence[bool],
) -> list[Tensor]:
    """As ``blocked.backward``."""
    from vr_kernels.ops.attention_received import triton_kernels as kernels

    needs_query, needs_key, needs_lse = needs
    d_query = query.new_empty(query.shape if needs_query else 0)
    d_key = key.new_empty(key.shape if needs_key else 0)
    d_lse = query.new_empty(0) if lse is None else lse.new_empty(lse.shape if needs_lse else 0)
    if query.numel() > 0:
        total = torch.empty_like(grad, memory_format=torch.contiguous_format)
        problem = _problem(query, key, cu_seqlens, causal, scale)
        with torch.cuda.device_of(grad):
            arguments = problem | {
                "p_lse": _log_sum_exp(lse, grad, problem),
                "p_grad": grad.contiguous(),
                "p_total": total,
                "GIVEN_LSE": lse is not None,
                "TENSOR_CORES": tensor_cores(query.dtype, gradient=True),
            }
            if needs_query or needs_lse or lse is None:
                kernels.received_rows_gradient[(_programs(query, query.shape[-2]),)](
                    p_spoilt=_spoilt(key),
                    d_query=Heads.of(d_query) if needs_query else None,
                    NEEDS_QUERY=needs_query,
                    **arguments,
                )
            if needs_key:
                kernels.received_key_gradient[(_programs(query, key.shape[-2]),)](
                    p_spoilt=_spoilt(query), d_key=Heads.of(d_key), **arguments
                )
        if needs_lse:
            d_lse.copy_(total.transpose(-1, -2)).neg_()
    return [d_query, d_key, d_lse]


def _spoilt(heads: Tensor) -> Tensor:
    """NaN for each head that holds what is no number, else 0: (B, h, N) or (h, T) float32, contiguous."""
    return (heads * 0).sum(-1, dtype=torch.float32).transpose(-1, -2).contiguous()


def _log_sum_exp(lse: Tensor | None, like: Tensor, problem: dict[str, Any]) -> Tensor:
    """(B, h, N) or (h, T) float32, contiguous."""
    from vr_kernels.ops.attention_received.triton_kernels import received_lse

    if lse is not None:
        return lse.transpose(-1, -2).to(torch.float32).contiguous()
    made = torch.empty_like(like, memory_format=torch.contiguous_format)
    received_lse[(_programs(problem["query"].pointer, made.shape[-2]),)](p_lse=made, **problem)
    return made


def _programs(query: Tensor, heads: int) -> int:
    *batch, tokens, _, _ = query.shape
    return (batch[0] if batch else 1) * heads * -(-tokens // _block(query))


def _problem(query: Tensor, key: Tensor, cu_seqlens: Tensor | None, causal: bool, scale: float) -> dict[str, Any]:
    """What the kernels have in common."""
    tokens, heads, width = query.shape[-3:]
    packed: tuple[Any, ...] = ()
    if cu_seqlens is not None:
        packed = (sequence_of_tokens(cu_seqlens, tokens), cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1)
    return {
        "query": Heads.of(query),
        "key": Heads.of(key),
        "packed": packed,
        "scale": scale,
        "tokens": tokens,
        "HEADS": heads,
        "GROUPS": heads // key.shape[-2],
        "CAUSAL": causal,
        "BLOCK": _block(query),
        **head_block(width),
        "num_warps": 4 if width <= 64 else 8,
        "num_stages": 2,
    }


def _block(query: Tensor) -> int:
    """Rows and columns of a tile. Of 64 no float32 product may be: see ``attention_importance.triton.TILE``."""
    if tensor_cores(query.dtype, gradient=True):
        return 64 if query.shape[-1] <= 128 else 32
    return 32 if query.shape[-1] <= 64 else 16
