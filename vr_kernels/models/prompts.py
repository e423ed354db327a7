"""Prompts: from messages with images to a text, as the model's chat template writes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}, ...]}

IMAGE = "<image>"  # an image's place in a text that somebody typed, or that a data set has


def user_message(prompt: str, num_images: int) -> Message:
    """What a user asks, with its images where the prompt has ``<image>``, or before it where it has none.

    Raises:
        ValueError: ``<image>`` stands in the prompt, but not once for each image.

    >>> user_message("What is it?", 1)["content"]
    [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]
    """
    parts = split_parts(prompt.strip("\n"))
    places = sum(part["type"] == "image" for part in parts)
    if places not in (0, num_images):
        raise ValueError(
            f"the prompt has {IMAGE} {places} times, and {num_images} images are given; it must have one for each "
            "image, or none at all"
        )
    leading = [{"type": "image"}] * (num_images - places)  # all of them, or none
    return {"role": "user", "content": leading + parts}


def split_parts(text: str) -> list[dict[str, str]]:
    """Images and the texts between them; newlines that stand beside an image are left out, for templates write theirs.

    >>> split_parts("<image>\\nWhat is it?")
    [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]
    """
    pieces = re.split(rf"\n*({re.escape(IMAGE)})\n*", text)  # texts at even places, images at odd ones
    return [
        {"type": "image"} if place % 2 else {"type": "text", "text": piece}
        for place, piece in enumerate(pieces)
        if piece
    ]


def join_parts(message: Message, image_token: str) -> str:
    """A message's content as one text, its parts on lines of their own."""
    return "\n".join(image_token if part["type"] == "image" else part["text"] for part in message["content"])


def takes_parts(render: Callable[[list[Message]], str], image_token: str) -> bool:
    """Whether a template takes a message's content in parts, as those of processors, or as text, as most of tokenizers.

    None says which: it is tried.
    """
    from jinja2 import TemplateError

    try:
        rendered = render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]}])
    except (TypeError, TemplateError):
        return False
    return (image_token in rendered or "hello" in rendered) and "'type'" not in rendered


class PromptWriter:
    """Writes messages as the processor's chat template does; without one, images and texts line by line.

    Templates of processors take a message's content in parts, many of tokenizers as one text; both work.

    Args:
        processor: of an image-text-to-text model.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_token: str = getattr(processor, "image_token", "")
        self.template: str | None = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
        self._takes_parts = self.template is not None and takes_parts(self._apply, self.image_token)

    def prompt(self, messages: list[Message]) -> str:
        """All messages, and the beginning of the assistant's turn.

        Raises:
            ValueError: the template refuses them.
        """
        if self.template is None:
            return "\n".join(join_parts(message, self.image_token) for message in messages)
        return self._render(messages, add_generation_prompt=True)

    def answer(self, messages: list[Message], text: str) -> str:
        """What follows ``prompt(messages)`` where the assistant says ``text``, up to its last character."""
        if self.template is None:
            return text
        prompt, said = self.prompt(messages), text.strip()
        answered = self._render([*messages, {"role": "assistant", "content": [{"type": "text", "text": said}]}])
        if not answered.startswith(prompt):
            return text
        return answered[len(prompt) : answered.index(said, len(prompt)) + len(said)]

    def _render(self, messages: list[Message], **options: Any) -> str:
        from jinja2 import TemplateError

        if not self._takes_parts:
            messages = [message | {"content": join_parts(message, self.image_token)} for message in messages]
        try:
            return self._apply(messages, **options)
        except TemplateError as reason:
            raise ValueError(f"the chat template refuses the prompt: {reason}") from reason

    def _apply(self, messages: list[Message], **options: Any) -> str:
        rendered: str = self.processor.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, **options
        )
        return rendered
