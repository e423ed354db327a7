"""A tiny random LLaVA-NeXT with its processor, and a tiny data set, as files: what a run of training starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from python_tests.models import _llava_vr

SPECIAL = ["<pad>", "<image>", "<|im_start|>", "<|im_end|>"]

# Qwen2's, which has no generation tags.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer(chat_template: str | None = CHATML) -> Any:
    """Bytes, and a few special tokens: every text is known, and most tokens are one character."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(SPECIAL + alphabet)}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    special: Any = {"pad_token": "<pad>", "eos_token": "<|im_end|>", "additional_special_tokens": SPECIAL[1:]}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=chat_template, **special)


def model(**changes: Any) -> Any:
    """LLaVA-VR with two blocks, which change what they read."""
    from transformers import Qwen2Config

    text = Qwen2Config(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=3,
    )  # fmt: skip
    return _llava_vr.model("clip", text_config=text, image_token_index=1, **changes)


def processor(chat_template: str | None = CHATML, **changes: Any) -> Any:
    from vr_kernels.models.llava_vr import LlavaVRProcessor

    return LlavaVRProcessor.from_config(model(**changes).config, tokenizer(chat_template))


def save_model(folder: Path, **changes: Any) -> Path:
    model(**changes).save_pretrained(folder)
    processor(**changes).save_pretrained(folder)
    return folder


def save_llava_next(folder: Path) -> Path:
    """Stock LLaVA-NeXT, which has no blocks."""
    import transformers as hf
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    torch.manual_seed(0)
    shared: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(image_size=24, patch_size=8, **shared),
        text_config=hf.Qwen2Config(vocab_size=264, num_key_value_heads=2, pad_token_id=0, eos_token_id=3, **shared),
        image_grid_pinpoints=_llava_vr.PINPOINTS,
        image_token_id=1,
        vision_feature_layer=-2,
    )
    hf.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    sizes: Any = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    hf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(image_grid_pinpoints=_llava_vr.PINPOINTS, **sizes),
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def save_data(folder: Path, samples: int = 16) -> Path:
    """Records with one image, with two, and with none, of different shapes and lengths."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    records = []
    for number in range(samples):
        names = [f"{number}-{place}.png" for place in range((1, 0, 2, 1)[number % 4])]
        for name in names:
            height, width = drawn.integers(16, 64, 2)
            Image.fromarray(drawn.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(images / name)
        turns = [
            {"from": "human", "value": "<image>\n" * len(names) + f"Which number is {number}?"},
            {"from": "gpt", "value": "It is " + "one more " * (number % 3) + "than nothing."},
            {"from": "human", "value": "Really?"},
            {"from": "gpt", "value": "Yes." * (1 + number % 2)},
        ]
        image = {"image": names[0]} if len(names) == 1 else {"image": names} if names else {}
        records.append({"id": f"sample-{number}", "conversations": turns, **image})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Those of a run of four steps, on ``save_model(folder / "start")`` and ``save_data(folder)``."""
    return {
        "model": str(folder / "start"),
        "data": str(folder / "data.json"),
        "images": str(folder / "images"),
        "output_dir": str(folder / "out"),
        "phase": 2,
        "learning_rate": 1e-2,
        "global_batch_size": 4,
        "precision": "fp32",
        "workers": 0,
        "save_steps": 100,
        "logging_steps": 1,
        "cpu": True,
    } | changes
