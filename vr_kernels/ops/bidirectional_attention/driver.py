"""Padded or packed sequences, with or without a guide, as calls ``attend(query, key, value, present, scale)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vr_kernels.ops._arguments import is_readable
from vr_kernels.ops._sequences import sequence_of_tokens, spans

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def attend_padded(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    guide: tuple[Tensor, Tensor] | None,
    guide_mask: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """query (B, N, h, d), key and value (B, M, h_kv, d), the guide's key and value (B, h_kv, d)."""
    if guide is not None:
        key, value = (torch.cat([x, one[:, None]], 1) for x, one in zip((key, value), guide, strict=True))
    present = _present(key, key_mask, guide is not None, guide_mask)  # (B, M or M+1)
    if present is None:
        return attend(query, key, value, None, scale)
    # What an absent key holds must not matter, and zero times NaN would be NaN.
    key, value = (x.masked_fill(~present[..., None, None], 0) for x in (key, value))
    return attend(query, key, value, present[:, None], scale)


def attend_packed(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    guide: tuple[Tensor, Tensor] | None,
    guide_mask: Tensor | None,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """query (T, h, d), key and value (T, h_kv, d), the guide's key and value (S, h_kv, d)."""
    if not is_readable(cu_seqlens):
        return _attend_blocks(attend, query, key, value, guide, guide_mask, cu_seqlens, scale)
    if query.shape[0] == 0:  # no sequence has a token, and yet each input has a gradient, of zero
        return query + 0 * torch.stack([x.sum() for x in (key, value, *(guide or ()))]).sum()
    outputs = []
    for s, tokens in spans(cu_seqlens):
        q, k, v = (x[None, tokens] for x in (query, key, value))  # (1, N, h or h_kv, d)
        guide_of_sequence = None if guide is None else (guide[0][s : s + 1], guide[1][s : s + 1])
        mask_of_sequence = None if guide_mask is None else guide_mask[s : s + 1]
        outputs.append(attend_padded(attend, q, k, v, guide_of_sequence, mask_of_sequence, None, scale)[0])
    return torch.cat(outputs)


def _attend_blocks(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    guide: tuple[Tensor, Tensor] | None,
    guide_mask: Tensor | None,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """Where cu_seqlens cannot be looked at: all rows in one sequence, under a mask of blocks (T, T + S)."""
    sequences = cu_seqlens.shape[0] - 1
    sequence = sequence_of_tokens(cu_seqlens, query.shape[0])  # (T,): -1 or S outside of all
    key_sequence = torch.where(sequence < sequences, sequence, -1)
    if guide is not None:
        key, value = (torch.cat([x, one]) for x, one in zip((key, value), guide, strict=True))
        guide_sequence = torch.arange(sequences, device=query.device)
        if guide_mask is not None:
            guide_sequence = guide_sequence.where(guide_mask, -1)
        key_sequence = torch.cat([key_sequence, guide_sequence])
    absent = key_sequence < 0
    key, value = (x.masked_fill(absent[:, None, None], 0) for x in (key, value))
    present = (sequence[:, None] == key_sequence) & ~absent
    return attend(query[None], key[None], value[None], present[None], scale)[0]


def _present(key: Tensor, key_mask: Tensor | None, has_guide: bool, guide_mask: Tensor | None) -> Tensor | None:
    """Which keys are there, (B, M), the guide last; None where all are known to be."""
    parts = [key_mask] if not has_guide else [key_mask, None if guide_mask is None else guide_mask[:, None]]
    if all(part is None or (is_readable(part) and bool(part.all())) for part in parts):
        return None
    batch, rows = key.shape[:2]
    sizes = [rows] if not has_guide else [rows - 1, 1]
    masks = [
        torch.ones(batch, size, dtype=torch.bool, device=key.device) if part is None else part
        for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.cat(masks, 1)
