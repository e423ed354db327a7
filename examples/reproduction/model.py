"""The small LLaVA-VR of a row, its tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.reproduction.blocks import replace_blocks, replace_features
from examples.reproduction.encoder import tower_config
from examples.reproduction.pruning import prune
from examples.reproduction.rows import DEPTH, Row
from examples.reproduction.task import Sample, Task
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRProcessor

SPECIAL = ("<pad>", "<unk>", "<image>", "<eos>")
PAD, IMAGE, EOS = (SPECIAL.index(word) for word in ("<pad>", "<image>", "<eos>"))


def vocabulary(task: Task) -> list[str]:
    """All words that a model of the task knows, by token."""
    return [*SPECIAL, *task.words]


def row_config(task: Task, row: Row) -> LlavaVRConfig:
    from transformers import Qwen2Config

    sizes: dict[str, Any] = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    tower = tower_config(task)
    text = Qwen2Config(
        vocab_size=len(vocabulary(task)),
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        **(sizes | (row.decoder or {})),
    )
    base: dict[str, Any] = {
        "vision_config": tower,
        "text_config": text,
        "image_token_index": IMAGE,
        "image_grid_pinpoints": [],
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": tower.num_hidden_layers,
        "vr_window": [3, 3],
        "vr_layers": [1, 4],
        "vr_levels": [6],
        "vr_options": {"num_heads": 4},
    }
    return LlavaVRConfig(**(base | row.changes))


def build_model(task: Task, row: Row, seed: int, encoder: Path | None) -> Any:
    """A new model with the frozen encoder of that folder; None leaves the encoder random."""
    from transformers import SiglipVisionModel

    torch.manual_seed(seed)
    model = LlavaVRForConditionalGeneration(row_config(task, row))
    if encoder is not None:
        trained = SiglipVisionModel.from_pretrained(encoder)
        model.model.vision_tower.load_state_dict(trained.state_dict())
    replace_blocks(model, row.blocks)
    model.model.vision_tower.requires_grad_(False)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    replace_features(model, row.features)
    return model


def load_model(task: Task, row: Row, folder: Path) -> Any:
    """The trained model of a row from the folder of its weights; where the row prunes, of the row that it prunes."""
    from safetensors.torch import load_model as load_weights

    model = build_model(task, row, 0, None)
    load_weights(model, folder / "model.safetensors")
    model.eval()
    return model if row.pruning is None else prune(model, row.pruning)


def build_processor(task: Task, config: LlavaVRConfig, token_grid: Sequence[int] | None = None) -> LlavaVRProcessor:
    """Of the config's tokens an image, unless another grid is given."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(vocabulary(task))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", extra_special_tokens={"image_token": "<image>"}, **special
    )
    processor = LlavaVRProcessor.from_config(config, tokenizer)
    if token_grid is not None:
        processor.token_grid = list(token_grid)
    return processor


def question(sample: Sample, image_tokens: int) -> str:
    return "<image>" * image_tokens + " " + " ".join(sample.question)
