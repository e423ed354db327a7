"""Tiny random LLaVA, LLaVA-NeXT and Video-LLaVA models of transformers, and their processors."""

from __future__ import annotations

from typing import Any

import torch

from python_tests.integrations._towers import MODELS, SIZES

IMAGE, VIDEO = 2, 3  # placeholders
WORDS = ["<pad>", "<unk>", "<image>", "<video>", "what", "is", "this", "here"]
PINPOINTS = [[24, 48], [48, 24], [48, 48]]


def model(kind: str, family: str = "clip", seed: int = 0, **config: Any) -> Any:
    """A model whose logits depend visibly on its image."""
    import transformers as hf

    text = hf.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    shared = {
        "vision_config": MODELS[family][0](**SIZES),
        "text_config": text,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if family == "clip" else "full",
    } | config
    torch.manual_seed(seed)
    if kind == "llava":
        built: Any = hf.LlavaForConditionalGeneration(hf.LlavaConfig(image_token_id=IMAGE, **shared))
    elif kind == "llava_next":
        next_config = hf.LlavaNextConfig(image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS, **shared)
        built = hf.LlavaNextForConditionalGeneration(next_config)
    else:
        video_config = hf.VideoLlavaConfig(
            image_token_id=IMAGE, video_token_id=VIDEO, image_token_index=IMAGE, video_token_index=VIDEO, **shared
        )
        built = hf.VideoLlavaForConditionalGeneration(video_config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return built.eval()


def tokenizer() -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": ["<image>", "<video>"]}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def processor(kind: str) -> Any:
    import transformers as hf
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes: Any = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    options: Any = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if kind == "llava":
        return hf.LlavaProcessor(CLIPImageProcessorPil(**sizes), tokenizer(), **options)
    if kind == "llava_next":
        images = LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **sizes)
        return hf.LlavaNextProcessor(images, tokenizer(), **options)
    # Its constructor needs torchvision, which looks at the videos; how it counts does not.
    video_processor: Any = hf.VideoLlavaProcessor.__new__(hf.VideoLlavaProcessor)
    vars(video_processor).update(options, image_token="<image>", video_token="<video>")
    return video_processor
