"""Tiny random vision towers of transformers."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

BLOCKS, WIDTH = 5, 16

SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
MODELS = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}


def tower(family: str, *, attention: str = "sdpa", seed: int = 0) -> Any:
    """The same weights for the same seed; scaled up, lest all attention be flat."""
    config, model = MODELS[family]
    torch.manual_seed(seed)
    built: Any = model(config(**SIZES, attn_implementation=attention))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.copy_(torch.randn_like(parameter))
    return built.eval()


def pixels(batch: int = 2, height: int = 24, width: int = 24) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def patches(states: Tensor, family: str, height: int = 3, width: int = 3) -> Tensor:
    """(B, N, D) hidden states as a grid (B, H, W, D), without the CLS row where there is one."""
    return (states[:, 1:] if family == "clip" else states).reshape(len(states), height, width, -1)


class Adapted(nn.Module):
    """A projection with something added, as LoRA puts it in place of the plain one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, states: Tensor) -> Tensor:
        return torch.sin(self.base(states))


@functools.cache
def llava(family: str) -> Any:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, Qwen2Config

    torch.manual_seed(0)
    text = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=MODELS[family][0](**SIZES), text_config=text, image_token_id=63,
        image_grid_pinpoints=[[24, 48]], vision_feature_layer=-2,
        vision_feature_select_strategy="default" if family == "clip" else "full",
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config).eval()
