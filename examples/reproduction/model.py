"""The small LLaVA-VR of a row, its tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.reproduction.encoder import tower_config
from examples.reproduction.rows import Row
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRProcessor
from vr_kernels.nn import VisionRemember

WORDS = ["<pad>", "<unk>", "<image>", "<eos>", "row", ":", *map(str, range(10))]
PAD, IMAGE, EOS = (WORDS.index(word) for word in ("<pad>", "<image>", "<eos>"))


def row_config(row: Row) -> LlavaVRConfig:
    """A decoder of eight layers, so that blocks may stand after the seventh, as in the paper."""
    from transformers import Qwen2Config

    text = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    base: dict[str, Any] = {
        "vision_config": tower_config(),
        "text_config": text,
        "image_token_index": IMAGE,
        "image_grid_pinpoints": [],
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": tower_config().num_hidden_layers,
        "vr_window": [3, 3],
        "vr_layers": [1, 4],
        "vr_levels": [6],
        "vr_options": {"num_heads": 4},
    }
    return LlavaVRConfig(**(base | row.changes))


def build_model(row: Row, seed: int, encoder: Path | None) -> Any:
    """A new model with the frozen encoder of that folder; None leaves the encoder random."""
    from transformers import SiglipVisionModel

    torch.manual_seed(seed)
    model = LlavaVRForConditionalGeneration(row_config(row))
    if encoder is not None:
        trained = SiglipVisionModel.from_pretrained(encoder)
        model.model.vision_tower.load_state_dict(trained.state_dict())
    model.model.vision_tower.requires_grad_(False)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    replace_features(model, row.features)
    return model


def build_processor(config: LlavaVRConfig) -> LlavaVRProcessor:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", extra_special_tokens={"image_token": "<image>"}, **special
    )
    return LlavaVRProcessor.from_config(config, tokenizer)


def replace_features(model: nn.Module, features: str) -> None:
    """Lets the blocks read what a control row says, in place of the encoder's features."""
    replacements: dict[str, Callable[[Tensor], Tensor]] = {"zeros": torch.zeros_like, "means": _window_means}
    if features == "features":
        return
    replace = replacements[features]

    def hook(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, vision_map, levels, *others = arguments
        return hidden_states, vision_map, None if levels is None else tuple(replace(level) for level in levels), *others

    for block in model.modules():
        if isinstance(block, VisionRemember):
            block.register_forward_pre_hook(hook)


def _window_means(level: Tensor) -> Tensor:
    """(tiles, 12, 12, D), each feature the mean of its window of 3x3: what the pooled token was made of."""
    pooled = F.avg_pool2d(level.movedim(-1, 1), 3)  # (tiles, D, 4, 4)
    return pooled.repeat_interleave(3, 2).repeat_interleave(3, 3).movedim(1, -1)
