"""Attention importance on the CPU: csrc/cpu/importance.cpp reads the keys once; torch's GEMMs make the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops._native import DTYPE_CODES, address, module
from vr_kernels.ops._sequences import check_cu_seqlens_values, spans


class NativeRows:
    """``RowKernel`` by csrc/cpu."""

    def forward(
        self,
        query_rows: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        softmax: bool,
        scale: float,
    ) -> Tensor:
        sequences, rows, heads, width = query_rows.shape
        *batch, tokens, kv_heads, _ = key.shape
        check_cu_seqlens_values("attention_importance", cu_seqlens, tokens)
        query = query_rows.transpose(1, 2).to(torch.float32).contiguous()  # (B, h, R, d)
        weights = query.new_empty(*batch, heads, rows, tokens)
        bounds = None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()
        mask = None if key_mask is None else key_mask.contiguous()
        module().attention_importance(
            sequences=sequences,
            rows=rows,
            tokens=tokens,
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            bounds=address(bounds),
            query=address(query),
            key=address(key),
            key_strides=(key.stride() if batch else (0, *key.stride())),
            key_dtype=DTYPE_CODES[key.dtype],
            key_mask=address(mask),
            scale=scale,
            softmax=softmax,
            weights=address(weights),
            threads=torch.get_num_threads(),
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
        """One sequence after the other, so that no key is float32 for longer than its turn."""
        _, rows, heads, width = query_rows.shape
        kv_heads, packed = key.shape[-2], cu_seqlens is not None
        d_query = query_rows.new_zeros(query_rows.shape if needs[0] else 0)
        d_key = key.new_zeros(key.shape if needs[1] else 0)
        for i, own in enumerate(range(key.shape[0])) if cu_seqlens is None else spans(cu_seqlens):
            tokens = (..., own) if packed else own  # of this sequence in the weights
            mask = None if key_mask is None else key_mask[i]
            ds = _score_gradient(grad[tokens], None if weights is None else weights[tokens], mask) * scale  # (h, R, n)
            ds = ds.reshape(kv_heads, heads // kv_heads * rows, ds.shape[-1])
            if needs[0]:
                k = key[own].to(torch.float32)  # (n, h_kv, d)
                if mask is not None:
                    k = k.masked_fill(~mask[:, None, None], 0.0)  # nobody reads a masked key, be it NaN
                d_query[i] = (ds @ k.transpose(0, 1)).reshape(heads, rows, width).transpose(0, 1)
            if needs[1]:
                q = query_rows[i].to(torch.float32).transpose(0, 1).reshape(kv_heads, -1, width)
                d_key[own] = (ds.mT @ q).transpose(0, 1)
        return [d_query, d_key]


def _score_gradient(grad: Tensor, weights: Tensor | None, mask: Tensor | None) -> Tensor:
    if weights is not None:
        return weights * (grad - (weights * grad).sum(-1, keepdim=True))
    return grad if mask is None else grad * mask
