"""What the documentation's pages ask a reader to have: small random models in the place of pretrained ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

IMAGE = 2  # token id
WORDS = ["<pad>", "<unk>", "<image>", "what", "is", "this"]
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 2,
}  # fmt: skip


def llava() -> dict[str, Any]:
    """A LLaVA of 12x12 patches with its processor, and a question about an image."""
    import transformers as hf
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=96, patch_size=8, **SIZES),
        text_config=hf.Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, **SIZES),
        image_token_id=IMAGE,
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    counts: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return {
        "model": hf.LlavaForConditionalGeneration(config).eval(),
        "processor": hf.LlavaProcessor(pixels, tokenizer(), patch_size=8, **counts),
        "image": Image.new("RGB", (96, 96), "teal"),
        "text": "<image> what is this",
    }


def llava_and_a_decoder() -> dict[str, Any]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = torch.tensor([[3] + 8 * [IMAGE] + [4, 5]])
    decoder = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, **SIZES))
    return llava() | {"language_model": decoder.eval(), "input_ids": ids, "vision_mask": ids == IMAGE}


def parts() -> dict[str, Any]:
    """Folders of an encoder and a language model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

    encoder, language_model = Path("encoder").absolute(), Path("language_model").absolute()
    deep = SIZES | {"num_hidden_layers": 24}
    SiglipVisionModel(SiglipVisionConfig(image_size=96, patch_size=8, **deep)).save_pretrained(encoder)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, **SIZES)).save_pretrained(language_model)
    tokenizer().save_pretrained(language_model)
    return {"encoder": str(encoder), "language_model": str(language_model)}


def tokenizer() -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "extra_special_tokens": {"image_token": "<image>"}}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/methods.md": llava_and_a_decoder,
    "docs/training.md": parts,
    "docs/vision_remember.md": llava,
    "docs/visionzip.md": llava,
}
