"""Makes of a conversation the tensors that a model is trained on, with labels for what the assistant says alone."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from vr_kernels.models.inference import IGNORED
from vr_kernels.models.prompts import Message, join_parts, takes_parts

# The comment's newline is left out, and the template begins at the start of a line, as it does alone.
_BOS = "{{ bos_token }}{# where the tokenizer adds it #}\n"
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatEncoder:
    """Renders conversations with a chat template, and marks what the assistant says.

    A template with generation tags says itself what that is. With another one it is what an assistant's turn adds to
    the prompt before it, without whitespace at its end; a template that writes earlier turns differently once later
    ones follow is refused.

    Args:
        processor: a ``LlavaNextProcessor``, of LLaVA-VR or stock, with a fast tokenizer.
        template: Jinja source; None is the processor's own, or else the tokenizer's.
        max_length: tokens of a sample, images included; None is no limit.

    Raises:
        ValueError: no template anywhere; a slow tokenizer.
    """

    def __init__(self, processor: Any, *, template: str | None = None, max_length: int | None = None) -> None:
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        if not self.tokenizer.is_fast:
            raise ValueError(f"ChatEncoder: {type(self.tokenizer).__name__} is slow; the labels need a fast tokenizer")
        self.template: str = template or processor.chat_template or self.tokenizer.chat_template
        if not self.template:
            raise ValueError("ChatEncoder: neither processor nor tokenizer has a chat template, and none is named")
        self.takes_parts = takes_parts(self._render, processor.image_token)
        if self._bos_is_the_tokenizers():
            self.template = _BOS + self.template

    def __call__(self, messages: list[Message], images: list[Any]) -> dict[str, Tensor]:
        """Encodes one conversation.

        Args:
            messages: with contents in parts (``to_messages``). images: PIL images in RGB, one for each image part.

        Returns:
            input_ids and labels (T,); with images pixel_values (images, tiles, 3, H, W) and image_sizes (images, 2),
            or as the processor makes them without AnyRes, (images, 3, H, W).

        Raises:
            ValueError: no token is supervised; max_length cuts an image off; the template or processor refuses it.
        """
        from jinja2 import TemplateError

        if not self.takes_parts:
            image_token = self.processor.image_token
            messages = [message | {"content": join_parts(message, image_token)} for message in messages]
        try:
            text, ids, supervised = self._tokenize(messages)
        except TemplateError as reason:
            raise ValueError(f"the chat template refuses it: {reason}") from reason
        inputs = self.processor(text=[text], images=images or None, add_special_tokens=False, return_tensors="pt")
        input_ids = inputs.pop("input_ids")[0]  # (T,): as ids, but with one token for each feature of an image
        inputs.pop("attention_mask")

        placeholder = self.processor.image_token_id
        is_text = input_ids != placeholder
        if input_ids[is_text].tolist() != [token for token in ids if token != placeholder]:
            raise ValueError("the processor and its tokenizer do not agree on the tokens of its text")
        labels = torch.full_like(input_ids, IGNORED)
        marks = torch.tensor([mark for token, mark in zip(ids, supervised, strict=True) if token != placeholder])
        labels[is_text] = torch.where(marks.bool(), input_ids[is_text], IGNORED)

        length = len(input_ids) if self.max_length is None else self.max_length
        if not is_text[length:].all():
            raise ValueError(f"max_length {self.max_length} cuts an image off; the sample has {len(input_ids)} tokens")
        # A model predicts from the second token on.
        if (labels[1:length] == IGNORED).all():
            raise ValueError(f"none of its first {length} tokens is an assistant's")
        return {"input_ids": input_ids[:length], "labels": labels[:length], **inputs}

    def _tokenize(self, messages: list[Message]) -> tuple[str, list[int], list[int]]:
        """Text with one placeholder an image, its tokens, and 1 for each that is supervised."""
        text = self._render(messages)
        if GENERATION_TAG.search(self.template):
            encoded = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, return_dict=True, return_assistant_tokens_mask=True
            )
            return text, encoded["input_ids"], encoded["assistant_masks"]
        spans = self._assistant_spans(messages, text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        supervised = [int(any(start < last and end > first for first, last in spans)) for start, end in offsets]
        return text, encoded["input_ids"], supervised

    def _render(self, messages: list[Message], **options: Any) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, **options
        )
        return rendered

    def _bos_is_the_tokenizers(self) -> bool:
        """Whether a prompt gets the token that begins a text from the tokenizer, and not from the template."""
        from jinja2 import TemplateError

        bos = self.tokenizer.bos_token
        if bos is None or self.tokenizer("")["input_ids"][:1] != [self.tokenizer.bos_token_id]:
            return False
        content: Any = [{"type": "text", "text": "hello"}] if self.takes_parts else "hello"
        try:
            return not self._render([{"role": "user", "content": content}]).startswith(bos)
        except (TypeError, TemplateError):  # each sample will say why
            return False

    def _assistant_spans(self, messages: list[Message], text: str) -> list[tuple[int, int]]:
        """First and last character of what each turn of the assistant adds to the prompt before it."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._render(messages[:number], add_generation_prompt=True)
                turn = self._render(messages[: number + 1]).rstrip()
                if not (text.startswith(turn) and turn.startswith(prompt)):
                    raise ValueError(
                        f"the chat template has no generation tags, and writes turn {number} differently once others "
                        "follow it; name a template that has them"
                    )
                spans.append((len(prompt), len(turn)))
        return spans
