"""Attention importance by Triton: the launches. Triton itself is imported by the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops._sequences import check_cu_seqlens_values, sequence_of_tokens
from vr_kernels.ops._triton.heads import Heads, head_block, tensor_cores

# Numbers in a tile of keys, and the most keys, by tensor_cores(): with these hardly a register is spilled, and no
# float32 product has 64 rows: Triton gives those to Blackwell's tensor cores, in tf32, whatever precision is asked for.
TILE = {True: (8192, 64), False: (4096, 32)}
BLOCK_M = 16  # rows of a tile, the least that a tensor core takes: mostly there are few


class WeightGradient(NamedTuple):
    """A gradient (B, h, R, N) or (h, R, T); strides count elements."""

    pointer: Tensor
    sequence: int
    head: int
    row: int
    token: int


class TritonRows:
    """``RowKernel`` by Triton."""

    def forward(
        self,
        query_rows: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        softmax: bool,
        scale: float,
    ) -> Tensor:
        from vr_kernels.ops.attention_importance.triton_kernels import importance_forward

        sequences, rows, heads, _ = query_rows.shape
        *batch, tokens, _, _ = key.shape
        check_cu_seqlens_values("attention_importance", cu_seqlens, tokens)
        weights = key.new_empty(*batch, heads, rows, tokens, dtype=torch.float32)
        if cu_seqlens is not None:
            weights.zero_()  # for tokens past the bounds
        if sequences > 0 and tokens > 0:
            with torch.cuda.device_of(weights):
                importance_forward[(_row_programs(query_rows, key),)](
                    query=Heads.of(query_rows),
                    key=Heads.of(key),
                    p_weights=weights,
                    SOFTMAX=softmax,
                    **_problem(query_rows, key, key_mask, cu_seqlens, scale),
                )
        return weights

    def backward(
        self,
        grad: Tensor,
        query_rows: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        weights: Tensor | None,
        scale: float,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        from vr_kernels.ops.attention_importance import triton_kernels as kernels

        sequences, rows, heads, _ = query_rows.shape
        tokens, kv_heads = key.shape[-3:-1]
        if sequences == 0 or tokens == 0:
            inputs = zip((query_rows, key), needs, strict=True)
            return [tensor.new_zeros(tensor.shape if need else 0) for tensor, need in inputs]
        d_query = query_rows.new_empty(query_rows.shape if needs[0] else 0)
        d_key = key.new_empty(key.shape if needs[1] else 0)
        arguments = _problem(query_rows, key, key_mask, cu_seqlens, scale) | {
            "grad": WeightGradient(grad, *((0,) * (4 - grad.dim())), *grad.stride()),
            "p_weights": weights,
            "p_delta": None if weights is None else grad.new_empty(sequences, heads, rows),
            "TENSOR_CORES": tensor_cores(key.dtype, gradient=True),
        }
        with torch.cuda.device_of(grad):
            if needs[0] or weights is not None:
                kernels.importance_rows_gradient[(_row_programs(query_rows, key),)](
                    key=Heads.of(key),
                    d_query=Heads.of(d_query) if needs[0] else None,
                    NEEDS_QUERY=needs[0],
                    **arguments,
                )
            if needs[1]:
                batch = 1 if cu_seqlens is not None else sequences
                kernels.importance_key_gradient[(batch * kv_heads * -(-tokens // _block_n(key)),)](
                    query=Heads.of(query_rows),
                    p_sequence=None if cu_seqlens is None else sequence_of_tokens(cu_seqlens, tokens),
                    d_key=Heads.of(d_key),
                    sequences=sequences,
                    **arguments,
                )
        return [d_query, d_key]


def _row_programs(query_rows: Tensor, key: Tensor) -> int:
    sequences, rows, heads, _ = query_rows.shape
    kv_heads = key.shape[-2]
    return sequences * kv_heads * -(-(heads // kv_heads * rows) // BLOCK_M)


def _problem(
    query_rows: Tensor, key: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> dict[str, Any]:
    """What the kernels have in common."""
    _, rows, heads, width = query_rows.shape
    tokens, kv_heads = key.shape[-3:-1]
    return {
        "p_mask": None if key_mask is None else key_mask.contiguous().view(torch.uint8),
        "p_bounds": None if cu_seqlens is None else cu_seqlens.contiguous(),
        "w_sequence": 0 if cu_seqlens is not None else heads * rows * tokens,
        "scale": scale,
        "tokens": tokens,
        "rows": rows,
        "KV_HEADS": kv_heads,
        "GROUPS": heads // kv_heads,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": _block_n(key),
        **head_block(width),
        "num_warps": 4 if width <= 64 else 8,
        "num_stages": 2,
    }


def _block_n(key: Tensor) -> int:
    numbers, most = TILE[tensor_cores(key.dtype, gradient=True)]
    return max(16, min(most, numbers // head_block(key.shape[-1])["BLOCK_D"]))
