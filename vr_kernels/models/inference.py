"""``Assistant``: a model and its processor, loaded from a folder, that answer prompts with images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vr_kernels.models.prompts import Message, PromptWriter

IGNORED = -100  # the label of a token that is not supervised, to transformers


class Assistant:
    """An image-text-to-text model of transformers, LLaVA-VR among them, with its processor.

    Args:
        model: made ready for inference. processor: with an image processor and a tokenizer.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # answers go on at the right
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.writer = PromptWriter(processor)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu", dtype: str = "auto") -> Assistant:
        """The model that ``save_pretrained`` wrote to a folder.

        Args:
            dtype: of the weights, such as "bfloat16"; "auto" is the one that they were saved in.

        Raises:
            ValueError: no such folder; a folder without model, or without one that reads images; files that cannot be
                read; no CUDA device.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device}; there is no CUDA device here")
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"model {folder}: there is no such folder")
        if not (folder / "config.json").is_file():
            raise ValueError(f"model {folder}: it holds no model, for it has no config.json")
        return cls(_load_model(folder, dtype).to(device), _load_processor(folder))

    def inputs(self, messages: Sequence[list[Message]], images: Sequence[list[Any]]) -> dict[str, Tensor]:
        """Tensors of prompts, padded at the left, on the model's device.

        Args:
            messages: of each prompt, ``user_message`` for a single question. images: of each, PIL images in RGB.

        Raises:
            ValueError: the template or the processor refuses them.
        """
        texts = [self.writer.prompt(conversation) for conversation in messages]
        bos = self.tokenizer.bos_token
        encoded = self.processor(
            text=texts,
            images=[list(group) for group in images] if any(images) else None,
            add_special_tokens=bos is None or not texts[0].startswith(bos),  # no template writes it twice
            padding=True,
            return_tensors="pt",
        )
        return dict(encoded.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Tensor], **options: Any) -> list[str]:
        """The answers, special tokens left out. ``options`` are those of the model's ``generate``."""
        tokens = self.model.generate(**inputs, **options)
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return answers

    @torch.inference_mode()
    def score(self, messages: list[Message], images: list[Any], answer: str) -> tuple[float, bool]:
        """How likely an answer is: its mean negative log-likelihood a token, and whether greedy decoding gives it.

        What stands before the answer is the prompt; Vision Remember's guide sees that alone.

        Raises:
            ValueError: an answer without tokens; what ``inputs`` refuses.
        """
        inputs = self.inputs([messages], [images])
        tokens = self._answer_tokens(messages, answer).to(self.model.device)  # (1, A)
        if tokens.shape[1] == 0:
            raise ValueError(f"the answer {answer!r} has no tokens")
        if inputs["input_ids"].shape[1] == 0:  # something must come before the first token of the answer
            start = self.tokenizer.bos_token_id or self.tokenizer.eos_token_id
            inputs = _append(inputs, tokens.new_full((1, 1), start))
        inputs = _append(inputs, tokens)
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels[:, -tokens.shape[1] :] = tokens
        logits = self.model(**inputs, labels=labels).logits[:, -tokens.shape[1] - 1 : -1].float()  # (1, A, V)
        loss = torch.nn.functional.cross_entropy(logits[0], tokens[0])
        return loss.item(), bool((logits.argmax(-1) == tokens).all())

    def _answer_tokens(self, messages: list[Message], answer: str) -> Tensor:
        """Those that follow the prompt's, as in training: a text that begins there is not one that begins anew."""
        prompt, said = self.writer.prompt(messages), self.writer.answer(messages, answer)
        before, whole = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, prompt + said))
        if whole[: len(before)] == before:
            tokens = whole[len(before) :]
        else:  # the tokenizer joins the prompt's end to the answer; but a model answers after the prompt's own tokens
            tokens = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        return torch.tensor([tokens], dtype=torch.int64)


def open_image(path: Path) -> Any:
    """In RGB, turned as its camera says.

    Raises:
        ValueError: a file that is missing or no image that can be decoded.
    """
    from PIL import Image, ImageOps

    try:
        missing = not path.is_file()
    except OSError as reason:  # a name that no file can have
        raise ValueError(f"image {path} cannot be looked for: {reason.strerror}") from None
    if missing:
        raise ValueError(f"image {path} is missing")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as reason:  # Pillow's decoders raise whatever a corrupt file makes them stumble over
        raise ValueError(f"image {path} cannot be read: {reason}") from reason


def _load_model(folder: Path, dtype: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    import vr_kernels.models.llava_vr  # noqa: F401  (Auto classes know it from here on)

    try:
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as reason:
        raise ValueError(f"model {folder}: it cannot be loaded: {_first_line(reason)}") from reason


def _load_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise ValueError(f"model {folder}: its processor cannot be loaded: {_first_line(reason)}") from reason
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise ValueError(
            f"model {folder}: it has a {type(processor).__name__} and no processor of images and text; save the "
            "model's processor beside it"
        )
    return processor


def _append(inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Of one prompt, with tokens after it; what else says something of each token says 0 there."""
    shape = inputs["input_ids"].shape
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {
        name: torch.cat([value.long(), more.get(name, torch.zeros_like(tokens))], 1) if value.shape == shape else value
        for name, value in inputs.items()
    }


def _first_line(reason: BaseException) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip(" :")
