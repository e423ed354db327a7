"""FlexAttention as a contender."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vr_kernels.cli.measure.bench import compiled
from vr_kernels.cli.measure.local_cross_attention.cases import Inputs
from vr_kernels.cli.measure.local_cross_attention.contenders import Forward, windows_of


def flex(x: Inputs, attention: Callable[..., Any] = flex_attention) -> Tensor:
    """An image's queries over its features in window order: the mask is then close to the diagonal."""
    windows = windows_of(x)
    images, (n_h, n_w), slots = x.query.shape[0], x.query.shape[1:3], windows.shape[1]
    rows = windows.view(images, n_h * n_w * slots, -1)
    key = F.linear(rows, x.key_weight).unflatten(-1, (x.heads, -1)).transpose(1, 2)  # (B, h, HW, d)
    value = F.linear(rows, x.value_weight).unflatten(-1, (x.heads, -1)).transpose(1, 2)
    query = x.query.flatten(1, 2).unflatten(-1, (x.heads, -1)).transpose(1, 2)  # (B, h, n_h n_w, d)
    out = attention(query, key, value, block_mask=window_mask(n_h * n_w, slots, query.device))
    return out.transpose(1, 2).reshape(x.query.shape)  # type: ignore[no-any-return]


@functools.cache
def window_mask(tokens: int, slots: int, device: torch.device) -> BlockMask:
    """Token n sees rows n K to n K + K - 1. Made once: it is no part of a call."""

    def same_window(batch: Tensor, head: Tensor, token: Tensor, row: Tensor) -> Tensor:
        return row // slots == token

    return create_block_mask(same_window, None, None, tokens, tokens * slots, device=str(device))


def compiled_flex() -> Forward:
    return functools.partial(flex, attention=compiled(flex_attention))
