"""The whole block by the error rule: beside the same layers as one writes them with stock PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from python_tests._cases import Call
from python_tests._errors import assert_obeys_the_error_rule
from vr_kernels import VisionRemember, VisionRememberConfig, VisionTokenMap

TOKENS, LENGTH, HIDDEN, WIDTHS, HEADS = (3, 4), 20, 48, (24, 40), 4
CONFIG = VisionRememberConfig(
    hidden_size=HIDDEN, num_attention_heads=HEADS, feature_dims=WIDTHS, num_heads=HEADS, saliency="value"
)
BLOCK = VisionRemember(CONFIG)
NAMES = [name for name, _ in BLOCK.named_parameters()]
VISION = torch.zeros(2, LENGTH, dtype=torch.bool)
VISION[0, 1:13] = VISION[1, 4:16] = True
TEXT = torch.arange(LENGTH).expand(2, -1) >= 17
MAP = VisionTokenMap.from_grid(VISION, grid=TOKENS, feature_grid=(6, 8))


def draw(seed: int, dtype: torch.dtype) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = [random(*p.shape) * (p.shape[-1] ** -0.5 if p.dim() == 2 else 0.3) for p in BLOCK.parameters()]
    weights = [w + 1 if "norm_weight" in n or "norm.weight" in n else w for n, w in zip(NAMES, weights, strict=True)]
    levels = [random(2, 6, 8, width) for width in WIDTHS]
    return {
        "hidden_states": random(2, LENGTH, HIDDEN).to(dtype),
        "features": [level.to(dtype) for level in levels],
        "saliency": random(2, 6, 8).sigmoid().to(dtype),
        "weights": [weight.to(dtype) for weight in weights],
    }


def ours(hidden_states: Tensor, features: list[Tensor], saliency: Tensor, weights: list[Tensor]) -> Tensor:
    named = dict(zip(NAMES, weights, strict=True))
    arguments = (hidden_states, MAP, features)
    return functional_call(BLOCK, named, arguments, {"saliency": saliency, "text_mask": TEXT})


def heads(rows: Tensor) -> Tensor:
    """(B, N, E) -> (B, h, N, d)"""
    return rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def windows(grid: Tensor) -> Tensor:
    """(2, 6, 8, C) -> (2*3*4, 2*2, C)"""
    return grid.unflatten(2, (4, 2)).unflatten(1, (3, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)


def stock(hidden_states: Tensor, features: list[Tensor], saliency: Tensor, weights: list[Tensor]) -> Tensor:
    w = dict(zip(NAMES, weights, strict=True))
    cross, both = "cross_attention.", "bidirectional."
    tokens = hidden_states[VISION]  # (24, D)
    x = F.rms_norm(tokens, (HIDDEN,), w[f"{cross}query_norm.weight"], CONFIG.norm_eps)
    x = F.linear(F.linear(x, w[f"{cross}expansion.weight"]), w[f"{cross}attention.query_proj.weight"])
    gains, shifts = (w[f"{cross}attention.norm_{name}"].split(WIDTHS) for name in ("weight", "bias"))
    levels = [
        F.layer_norm(level, level.shape[-1:], gain, shift, 1e-6)
        for level, gain, shift in zip(features, gains, shifts, strict=True)
    ]
    window = windows(torch.cat(levels, -1))  # (24, 4, C)
    key = F.linear(window, w[f"{cross}attention.key_weight"])
    value = F.linear(window, w[f"{cross}attention.value_weight"]) * windows(saliency[..., None])
    x = F.scaled_dot_product_attention(heads(x[:, None]), heads(key), heads(value)).transpose(1, 2).flatten(1)
    x = F.linear(F.linear(x, w[f"{cross}attention.out_proj.weight"]), w[f"{cross}contraction.weight"])
    hidden_states = hidden_states.masked_scatter(VISION[..., None], tokens + x)

    tokens = hidden_states[VISION].view(2, 12, HIDDEN)
    guide = hidden_states.masked_fill(~TEXT[..., None], -torch.inf).amax(1, keepdim=True)
    x = F.rms_norm(torch.cat([tokens, guide], 1), (HIDDEN,), w[f"{both}norm_weight"], CONFIG.norm_eps)
    query, key, value = (heads(rows) for rows in F.linear(x, w[f"{both}qkv_proj.weight"]).chunk(3, -1))
    x = F.scaled_dot_product_attention(query, key, value)[:, :, :12].transpose(1, 2).flatten(2)
    return hidden_states.masked_scatter(VISION[..., None], tokens + F.linear(x, w[f"{both}out_proj.weight"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_block_errs_at_most_twice_as_much_as_stock_pytorch(dtype: torch.dtype) -> None:
    assert_obeys_the_error_rule(ours, stock, stock, lambda seed: draw(seed, dtype))


def test_both_are_one_function() -> None:
    call = draw(0, torch.float64)
    torch.testing.assert_close(ours(**call), stock(**call), rtol=1e-12, atol=1e-12)
