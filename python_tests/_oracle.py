"""What the operators compute, a second time: one window after the other, with explicit loops over its rows.

Shares no code with the references. Absent keys are left out instead of masked, so that there is no −inf to get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rows_of_windows(
    leading: Sequence[int], grid: Sequence[int], window_index: Tensor | None = None
) -> list[list[int | None]]:
    """The feature row of every slot of every window, None where it is absent."""
    if window_index is not None:
        return [[None if row == -1 else row for row in window] for window in window_index.tolist()]
    batch, n_h, n_w = leading
    _, height, width = grid
    s_h, s_w = height // n_h, width // n_w
    return [
        [(b * height + y) * width + x for y in range(i * s_h, (i + 1) * s_h) for x in range(j * s_w, (j + 1) * s_w)]
        for b in range(batch)
        for i in range(n_h)
        for j in range(n_w)
    ]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """query (h, d), key (K, h, d), value (K, h, d_v), bias (h, K) -> out (h, d_v), lse (h,), attention (h, K)."""
    scores = torch.stack([scale * (query * k).sum(-1) for k in key], -1) + bias
    lse = scores.logsumexp(-1)
    attention = (scores - lse[:, None]).exp()
    out = torch.stack([p[:, None] * v for p, v in zip(attention.unbind(-1), value, strict=True)]).sum(0)
    return out, lse, attention


def local_attention(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    value: Tensor | None = None,
    *,
    window_index: Tensor | None = None,
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, attention) of ``vr_kernels.local_attention``."""
    if not isinstance(key, Tensor):
        key = torch.cat([level.unsqueeze(-2) for level in key], -1)
    value = key if value is None else value
    *leading, heads, width = query.shape
    grid = key.shape[:-2]
    windows = rows_of_windows(leading, grid, window_index)
    group = heads // key.shape[-2]
    keys = [row.repeat_interleave(group, 0) for row in key.flatten(0, -3)]  # M of (h, d)
    values = [row.repeat_interleave(group, 0) for row in value.flatten(0, -3)]
    if saliency is not None:
        values = [row * sigma for row, sigma in zip(values, saliency.flatten(), strict=True)]
    scale = 1 / math.sqrt(width) if scale is None else scale

    results = []
    for n, q in enumerate(query.flatten(0, -3)):
        present = [slot for slot, row in enumerate(windows[n]) if row is not None]
        attention = q.new_zeros(heads, len(windows[n]))
        if not present:
            results.append((q.new_zeros(heads, value.shape[-1]), q.new_full((heads,), -math.inf), attention))
            continue
        bias = q.new_zeros(heads, len(present))
        if attention_bias is not None:
            bias = (attention_bias if attention_bias.dim() == 2 else attention_bias[n])[:, present]
        rows = [windows[n][slot] for slot in present]
        out, lse, weights = attend(q, [keys[row] for row in rows], [values[row] for row in rows], bias, scale)
        results.append((out, lse, attention.index_copy(1, torch.tensor(present), weights)))
    out, lse, attention = (torch.stack(column) for column in zip(*results, strict=True))
    return (
        out.reshape(*leading, heads, out.shape[-1]),
        lse.reshape(*leading, heads),
        attention.reshape(*leading, heads, attention.shape[-1]),
    )


def layer_norm(row: Tensor, eps: float) -> Tensor:
    """(C,) -> (C,), no affine."""
    centred = row - row.mean()
    return centred / (centred.square().mean() + eps).sqrt()


def local_cross_attention(
    query: Tensor,
    features: Tensor | Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    *,
    num_heads: int,
    window_index: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    norm_groups: str = "all",
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    saliency_on: str = "value",
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, attention) of ``vr_kernels.local_cross_attention``: project every row, then attend."""
    levels = [features] if isinstance(features, Tensor) else list(features)
    grid = levels[0].shape[:-1]
    sigma = query.new_ones(grid).flatten() if saliency is None else saliency.flatten()
    keys, values = [], []
    for m, parts in enumerate(zip(*[level.flatten(0, -2) for level in levels], strict=True)):
        row = torch.cat(parts)
        if norm_weight is not None:
            groups = [row] if norm_groups == "all" else parts
            row = torch.cat([layer_norm(group, norm_eps) for group in groups]) * norm_weight
            row = row if norm_bias is None else row + norm_bias
        keys.append(key_weight @ row + (0 if key_bias is None else key_bias))
        bias = 0 if value_bias is None else value_bias
        on_feature = saliency_on == "feature"
        values.append(value_weight @ (row * sigma[m]) + bias if on_feature else (value_weight @ row + bias) * sigma[m])
    shape = (*grid, num_heads, query.shape[-1] // num_heads)
    out, _, attention = local_attention(
        query.unflatten(-1, shape[-2:]),
        torch.stack(keys).view(shape),
        torch.stack(values).view(shape),
        window_index=window_index,
        attention_bias=attention_bias,
        scale=scale,
    )
    return out.flatten(-2), attention
