"""What the fuzzer found where files come in, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels import VisionRememberConfig, load_vision_remember, save_vision_remember
from vr_kernels.integrations.vision_remember.checkpoint import FILE

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "{", DEEP, "3", "[1]", '{"hidden_size": 8, "norm_eps": ' + "9" * 400 + "}"])
def test_what_is_no_json_of_a_block_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^VisionRememberConfig: "):
        VisionRememberConfig.from_json(text)


@pytest.mark.parametrize("text", [DEEP, "seed: 2001-99-99", "learning_rate: " + "9" * 400])
def test_settings_that_python_cannot_hold_are_refused_in_words(text: str, tmp_path: Path) -> None:
    from vr_kernels.models.training.config import TrainConfig

    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^TrainConfig: "):
        TrainConfig.from_yaml(tmp_path / "config.yaml")


def test_conversations_nested_too_deep_are_refused_in_words(tmp_path: Path) -> None:
    from vr_kernels.models.training.conversations import ConversationDataset

    (tmp_path / "data.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"^ConversationDataset: data .* is not JSON"):
        ConversationDataset(tmp_path / "data.json", None, lambda messages, images: {})


def test_an_image_name_that_no_file_can_have_is_a_bad_sample(tmp_path: Path) -> None:
    from vr_kernels.models.training import BadSampleError
    from vr_kernels.models.training.conversations import ConversationDataset

    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "x" * 5000, "conversations": turns}]))
    with pytest.raises(BadSampleError, match="cannot be looked for: File name too long"):
        ConversationDataset(tmp_path / "data.json", tmp_path, lambda messages, images: {})[0]


def spoil(folder: Path, **changes: Any) -> None:
    """The saved file with header entries, or under a weight's name the weight, replaced."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(folder / FILE, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(folder / FILE)
    for name, value in changes.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            header[name] = value
    save_file(tensors, folder / FILE, metadata=header)


WEIGHT = "1.cross_attention.contraction.weight"
SPOILT: dict[str, dict[str, Any]] = {
    "the choices in .* are none of a block": {"choices": "{}"},
    "the choices in .* are none of a block: layers is": {
        "choices": '{"layers": ["x"], "levels": [], "neighborhood": []}'
    },
    "the blocks are of a model of type '', this one is 'llava'": {"model_type": ""},
    rf"{WEIGHT} in .* is torch.float32 \(2, 2\); it must be floating and": {WEIGHT: torch.ones(2, 2)},
    rf"{WEIGHT} in .* is torch.int8": {WEIGHT: torch.ones(32, 32, dtype=torch.int8)},
}  # fmt: skip


@pytest.mark.parametrize("words", SPOILT)
def test_blocks_that_do_not_fit_leave_the_model_as_it_was(words: str, tmp_path: Path) -> None:
    save_vision_remember(tiny.patched("llava"), tmp_path)
    spoil(tmp_path, **SPOILT[words])
    model = tiny.model("llava")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=f"^load_vision_remember: {words}"):
        load_vision_remember(model, tmp_path)
    assert list(model.state_dict()) == before


def test_a_file_of_blocks_that_was_cut_short_is_refused_in_words(tmp_path: Path) -> None:
    save_vision_remember(tiny.patched("llava"), tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^load_vision_remember: .* is no safetensors file, or not whole"):
        load_vision_remember(tiny.model("llava"), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vr_window": []},
        {"vr_levels": ["x"]},
        {"vr_options": "x"},
        {"text_config": "x"},
        {"vision_config": [1]},
        {"dtype": "x"},
    ],
    ids=str,
)
def test_fields_of_a_wrong_type_are_refused_in_words(change: dict[str, Any]) -> None:
    from vr_kernels.models.llava_vr import LlavaVRConfig

    with pytest.raises(ValueError, match=r"^LlavaVRConfig: (these fields make no configuration: |vr_[a-z]+ is )"):
        LlavaVRConfig.from_dict(LlavaVRConfig.preset("v2").to_dict() | change)
