"""Conversations about images, in the JSON format of LLaVA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from vr_kernels.models.inference import open_image
from vr_kernels.models.prompts import IMAGE, Message, split_parts
from vr_kernels.models.training.bad_samples import BadSampleError, BadSamples

ROLES = {"human": "user", "gpt": "assistant"}


class ConversationDataset(Dataset[dict[str, Tensor]]):
    """Samples of a LLaVA JSON file, read and encoded when they are asked for.

    A record is ``{"id": ..., "image": name, names or absent, "conversations": [{"from": "human" | "gpt", "value":
    text}, ...]}``. Human and gpt take turns, human first; ``<image>`` in a human's text is the place of the next image.

    Args:
        data: a JSON file with a list of records, or a JSON-lines file (``.jsonl``) with one a line.
        images: the folder that image names are relative to; None for data without images.
        encode: makes tensors of messages, as chat templates take them, and PIL images (``ChatEncoder``).
        skipped: None raises BadSampleError at a sample whose record is malformed, whose image is missing or corrupt,
            or that ``encode`` refuses. Otherwise bad samples are recorded there, and the next good one stands in.

    Raises:
        ValueError: a file or folder that is not there; a file that holds no records.
    """

    def __init__(
        self,
        data: str | Path,
        images: str | Path | None,
        encode: Callable[[list[Message], list[Any]], dict[str, Tensor]],
        *,
        skipped: BadSamples | None = None,
    ) -> None:
        self.records = _read_records(Path(data))
        self.images = None if images is None else Path(images)
        if self.images is not None and not self.images.is_dir():
            raise ValueError(f"ConversationDataset: images is {str(images)!r}; there is no such folder")
        self.encode, self.skipped = encode, skipped

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        for candidate in range(index, index + len(self)):
            sample = self._sample(candidate % len(self))
            if sample is not None:
                return sample
        raise BadSampleError(f"none of the {len(self)} samples can be trained on")

    def _sample(self, index: int) -> dict[str, Tensor] | None:
        """None for a bad sample, once it is recorded."""
        record = self.records[index]
        name = f"sample {index}"
        try:
            if isinstance(record, dict) and "id" in record:
                name += f" (id {record['id']!r})"
            messages, files = to_messages(record)
            return self.encode(messages, [self._open(file) for file in files])
        except ValueError as reason:
            bad = BadSampleError(f"{name}: {' '.join(str(reason).split())}")
            if self.skipped is None:
                raise bad from reason
            self.skipped.add(index, str(bad))
            return None

    def _open(self, file: str) -> Any:
        """The image in RGB, or a ValueError that names its file."""
        if self.images is None:
            raise ValueError(f"it has the image {file}, and no folder of images is given")
        return open_image(self.images / file)


def to_messages(record: Any) -> tuple[list[Message], list[str]]:
    """The messages of a record, as chat templates take them, and the names of its images in their order.

    The content of a message is a list of images and texts (``split_parts``).

    Raises:
        ValueError: a record that does not have the format, without a word on which one it is.

    >>> turns = [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    >>> messages, images = to_messages({"image": "a.png", "conversations": turns})
    >>> messages[0]
    {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]}
    >>> images
    ['a.png']
    """
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError("it has no list of conversations")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        expected = ("human", "gpt")[number % 2]
        if speaker != expected:
            raise ValueError(f"turn {number} is from {speaker!r}; human and gpt take turns, so it must be {expected!r}")
        if not isinstance(text, str):
            raise ValueError(f"turn {number} has the value {text!r}; it must be a text")
        if expected == "gpt" and IMAGE in text:
            raise ValueError(f"turn {number} is from gpt and has an {IMAGE}")
        messages.append({"role": ROLES[expected], "content": split_parts(text)})
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError(f"its image is {images!r}; it must be a name or a list of names")
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != len(images):
        raise ValueError(f"it has {len(images)} images and {places} times {IMAGE}")
    return messages, images


def _read_records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        lines = path.suffix == ".jsonl"
        # Not splitlines: JSON allows other separators of lines inside a text, such as U+2028.
        records = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    except OSError as reason:
        raise ValueError(f"ConversationDataset: data {path} cannot be read: {reason.strerror}") from None
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"ConversationDataset: data {path} is not JSON: {reason}") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"ConversationDataset: data {path} holds no list of records")
    return records
