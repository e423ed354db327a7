"""The definition of attention received, in plain PyTorch: with the attention map that no other backend makes."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._sequences import sequence_of_tokens
from vr_kernels.ops.attention_importance.reference import row_scores
from vr_kernels.ops.local_attention.reference import masked_softmax


def attention_received(
    query: Tensor,
    key: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    causal: bool,
    scale: float,
) -> Tensor:
    """What each head's rows give each column in all: query (B, N, h, d), key (B, N, h_kv, d) -> (B, h, N).

    Packed: query (T, h, d), key (T, h_kv, d) -> (h, T).
    """
    tokens = key.shape[-3]
    present = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device)  # (row, column)
    if causal:
        present = present.tril()
    if cu_seqlens is not None:
        sequence = sequence_of_tokens(cu_seqlens, tokens)
        inside = (sequence >= 0) & (sequence < cu_seqlens.shape[0] - 1)
        present = present & (sequence[:, None] == sequence) & inside
    scores = row_scores(query, key, scale)  # (B, h, N, N)
    if lse is None:
        weights = masked_softmax(scores, present)[0]
    else:
        weights = (scores - lse.transpose(-1, -2).unsqueeze(-1)).masked_fill(~present, -torch.inf).exp()
    return weights.sum(-2)
