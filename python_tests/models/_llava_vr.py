"""Tiny random LLaVA-VR models and their processors; every block changes what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRProcessor

WORDS = ["<pad>", "<unk>", "<image>", "<eos>", *(f"w{i}" for i in range(28))]
IMAGE = WORDS.index("<image>")
SIDE, PATCH = 24, 4  # 6x6 patches a tile
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
DECODERS = {"qwen2": Qwen2Config, "llama": LlamaConfig}


def config(tower: str = "siglip", decoder: str = "qwen2", **changes: Any) -> LlavaVRConfig:
    vision = TOWERS[tower](
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    text = DECODERS[decoder](
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=3,
    )  # fmt: skip
    defaults: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": IMAGE,
        "image_grid_pinpoints": PINPOINTS,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        "vr_levels": [2, 3],
        "vr_layers": [1, 4],
        "vr_window": [3, 3],
        "vr_options": {"num_heads": 2},
    }
    return LlavaVRConfig(**(defaults | changes))


def model(
    tower: str = "siglip", decoder: str = "qwen2", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Any:
    built = LlavaVRForConditionalGeneration._from_config(config(tower, decoder, **changes), dtype=dtype)
    return randomise(built, seed).eval()


def randomise(model: Any, seed: int = 0) -> Any:
    """Weights of a size that lets every part show in the logits; blocks are no longer the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith(("bias", "newline")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", extra_special_tokens={"image_token": "<image>"}, **special
    )


def processor(config: LlavaVRConfig) -> LlavaVRProcessor:
    return LlavaVRProcessor.from_config(config, tokenizer())


def image(height: int = 40, width: int = 60, seed: int = 0) -> Any:
    from PIL import Image

    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def inputs(processor: LlavaVRProcessor, texts: list[str], images: list[Any]) -> dict[str, Tensor]:
    return dict(processor(images=images or None, text=texts, return_tensors="pt", padding=True))
