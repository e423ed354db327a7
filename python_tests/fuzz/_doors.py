"""Where files from outside come into the package: what opens them, and what it may raise.

A door takes bytes that spoil a file that was right. All that it may raise is a ValueError, with words.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from python_tests.fuzz._spoilt_documents import Tape, spoilt, spoilt_bytes, spoilt_text
from vr_kernels.integrations.vision_remember import checkpoint
from vr_kernels.models.training.config import TrainConfig
from vr_kernels.models.training.conversations import ConversationDataset
from vr_kernels.nn import VisionRememberConfig


@dataclass(frozen=True)
class Door:
    open: Callable[[bytes], None]
    words: tuple[str, ...]  # with one of which a refusal begins

    def verdict(self, data: bytes) -> str:
        """ "taken" or "refused"; whatever else is raised goes through."""
        try:
            self.open(data)
        except ValueError as refusal:
            if not str(refusal).startswith(self.words):
                raise AssertionError(f"no words of ours: {type(refusal).__name__}: {refusal}") from refusal
            return "refused"
        return "taken"


def block_choices(data: bytes) -> None:
    right = VisionRememberConfig.preset("v2", feature_dims=(1024, 512)).to_json().encode()
    config = VisionRememberConfig.from_json(spoilt_text(right, data).decode(errors="surrogateescape"))
    assert VisionRememberConfig.from_json(config.to_json()) == config
    _ = config.heads


CONVERSATIONS = json.dumps(
    [
        {
            "id": "a",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
        },
        {"id": 2, "conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]},
    ]
).encode()


def conversations(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("data.jsonl" if data[:1] > b"\xc0" else "data.json")
        path.write_bytes(spoilt_text(CONVERSATIONS, data[1:]))
        Image.new("RGB", (1, 1)).save(Path(folder) / "a.png")
        dataset = ConversationDataset(path, folder, lambda messages, images: {})
        for number in range(len(dataset)):
            assert dataset._sample(number) == {}


SETTINGS: dict[str, Any] = {
    "model": "llava-vr", "data": "data.json", "images": "images", "output_dir": "out", "phase": 2,
    "learning_rate": 2e-5, "global_batch_size": 32, "learning_rates": {"projector": 1e-4}, "max_steps": 3,
    "chat_template": "chatml", "image_grid_pinpoints": [[336, 672]], "precision": "bf16", "epochs": 1.0, "seed": 0,
}  # fmt: skip


def settings(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(spoilt_text(json.dumps(SETTINGS).encode(), data))
        TrainConfig.from_yaml(path)


@cache
def saved_blocks() -> tuple[bytes, dict[str, str], dict[str, torch.Tensor]]:
    """A file of save_vision_remember: its bytes, its header and its tensors."""
    from safetensors import safe_open

    from python_tests.integrations.vision_remember import _families as tiny

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_vision_remember(tiny.patched("llava"), folder)
        path = Path(folder) / checkpoint.FILE
        with safe_open(path, framework="pt") as file:
            return path.read_bytes(), file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@cache
def tiny_model() -> Any:
    from python_tests.integrations.vision_remember import _families as tiny

    return tiny.model("llava")


def blocks(data: bytes) -> None:
    """The file's bytes, or its header's choices, or its tensors changed. The model that is to take them stays as it is
    where they are refused."""
    from safetensors.torch import save

    from vr_kernels import remove_vision_remember

    content, header, tensors = saved_blocks()
    tape = Tape(data)
    way = tape.below(4)
    if way == 0:
        content = spoilt_bytes(content, tape)
    elif way == 1:
        names = sorted(tensors)
        name = names[tape.below(len(names))]
        value = tensors[name]
        others = (value[:0], value[None], value.double(), value.to(torch.int8), value.new_full(value.shape, torch.nan))
        content = save(tensors | {name: others[tape.below(len(others))].contiguous()}, metadata=header)
    else:
        choices = json.dumps(spoilt(json.loads(header["choices"]), tape))
        changed = header | ({"choices": choices} if way == 2 else {"model_type": choices})
        content = save(tensors, metadata=changed)
    model = tiny_model()
    before = list(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / checkpoint.FILE).write_bytes(content)
        try:
            checkpoint.load_vision_remember(model, folder)
        except ValueError:
            assert list(model.state_dict()) == before, "a file that is refused has changed the model"
            raise
        else:
            remove_vision_remember(model)


def model_config(data: bytes) -> None:
    """A file that from_pretrained reads; transformers' reader itself meets only JSON objects here."""
    from vr_kernels.models.llava_vr import LlavaVRConfig

    document = spoilt_text(model_document(), data)
    try:
        is_object = isinstance(json.loads(document), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError("LlavaVRConfig: not tried")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        (Path(folder) / "config.json").write_bytes(document)
        LlavaVRConfig.from_pretrained(folder)


@cache
def model_document() -> bytes:
    from vr_kernels.models.llava_vr import LlavaVRConfig

    return json.dumps(LlavaVRConfig.preset("v2").to_dict()).encode()


DOORS = {
    "block_choices": Door(block_choices, ("VisionRememberConfig: ",)),
    "conversations": Door(conversations, ("ConversationDataset: ", "sample ")),
    "settings": Door(settings, ("TrainConfig: ",)),
    "blocks": Door(blocks, ("load_vision_remember: ", "apply_vision_remember: ")),
    "model_config": Door(model_config, ("",)),
}
