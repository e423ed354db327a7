"""The bidirectional layer spelt out, and what it is tried on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from vr_kernels import BidirectionalTokenAttention

WIDTH, HEADS, LENGTH = 24, 4, 16
ROWS = torch.tensor([[2, 3, 4, 5], [16 + 1, 16 + 2, -1, -1], [7, 8, 9, -1], [-1, -1, -1, -1]])
SAMPLE = torch.tensor([0, 1, 0, 1])
NEWLINES = torch.tensor([[6, -1], [-1, 16 + 4], [11, 10], [-1, -1]])
POSITIONS = torch.stack([torch.arange(LENGTH), torch.arange(LENGTH).clamp(min=3) - 3])  # the second is left-padded


def layer(**options: Any) -> BidirectionalTokenAttention:
    module = BidirectionalTokenAttention(WIDTH, HEADS, **({"zero_init": False} | options))
    for parameter in module.parameters():  # weights of a norm and biases too
        nn.init.normal_(parameter, std=0.3)
    return module


def batch(seed: int = 0, text: bool = True) -> dict[str, Tensor]:
    """Two samples, the second without text; three images and one of padding alone."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    mask[0, 12:15] = True
    given = {"hidden_states": torch.randn(2, LENGTH, WIDTH, generator=generator) * 3, "token_rows": ROWS}
    given["image_sample"] = SAMPLE
    return given | ({"text_mask": mask} if text else {})


def spelt_out(
    module: BidirectionalTokenAttention,
    hidden_states: Tensor,
    token_rows: Tensor,
    text_mask: Tensor | None = None,
    image_sample: Tensor | None = None,
    key_rows: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """The layer as the paper spells it: one image after the other, nothing padded, nothing masked."""

    def norm(rows: Tensor) -> Tensor:
        if module.norm == "rms":
            return F.rms_norm(rows, (WIDTH,), module.norm_weight, module.norm_eps)
        if module.norm == "layer":
            return F.layer_norm(rows, (WIDTH,), module.norm_weight, module.norm_bias, module.norm_eps)
        return rows

    stream = hidden_states.flatten(0, 1)
    out = stream
    for i, numbers in enumerate(token_rows):
        rows = numbers[numbers >= 0]
        if len(rows) == 0:
            continue
        newlines = rows[:0] if key_rows is None else key_rows[i][key_rows[i] >= 0]
        read = torch.cat([rows, newlines])
        tokens, position = norm(stream[read]), read % LENGTH
        if position_ids is not None:
            position = position_ids.expand(len(hidden_states), -1).flatten()[read]
        sample = i if image_sample is None else int(image_sample[i])
        if module.guide is not None and text_mask is not None and text_mask[sample].any():
            prompt = hidden_states[sample][text_mask[sample]]
            guide = prompt.mean(0) if module.guide == "mean" else prompt.max(0).values
            tokens, position = torch.cat([tokens, norm(guide[None])]), F.pad(position, (0, 1))
        q, k, v = module.qkv_proj(tokens).unflatten(-1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
        if module.rope_theta is not None:
            q, k = language_model_rotation(q, k, position, module.rope_theta)
        attended = F.scaled_dot_product_attention(q[:, : len(rows)], k, v).transpose(0, 1).flatten(-2)
        out = out.index_add(0, rows, module.out_proj(attended))
    return out.view(hidden_states.shape)


def language_model_rotation(q: Tensor, k: Tensor, position: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """q and k (h, N, d) as Qwen2 turns its own."""
    exponent = torch.arange(0, q.shape[-1], 2, dtype=torch.promote_types(q.dtype, torch.float32)) / q.shape[-1]
    angle = (position[:, None] / theta**exponent).repeat(1, 2)  # (N, d)
    cosine, sine = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    q, k = apply_rotary_pos_emb(q[None], k[None], cosine[None], sine[None])
    return q[0], k[0]
