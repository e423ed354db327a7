"""The definition of attention among the tokens of one sequence, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops.local_attention.reference import masked_softmax


def attend(query: Tensor, key: Tensor, value: Tensor, present: Tensor | None, scale: float) -> Tensor:
    """query (B, N, h, d), key and value (B, M, h_kv, d), present broadcasts to (B, N, M) -> (B, N, h, d)."""
    group = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(group, 2) for x in (key, value))  # (B, M, h, d)
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    everywhere = torch.ones_like(scores[:, 0], dtype=torch.bool)  # (B, N, M)
    present = everywhere if present is None else everywhere & present
    attention, _ = masked_softmax(scores, present[:, None])
    return torch.einsum("bhnm,bmhd->bnhd", attention.to(value.dtype), value)
