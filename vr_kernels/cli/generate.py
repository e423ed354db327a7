"""``vr-kernels generate``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vr_kernels.cli.bench import Device
from vr_kernels.cli.checks import require


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def generate(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A folder that save_pretrained wrote.")],
    prompt: Annotated[str, typer.Option(help="What is asked, with <image> where images stand, or without it.")],
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Above 0, tokens are drawn.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest tokens of this share.")] = 1,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="auto: as saved.")] = Dtype.auto,
    device: Annotated[Device, typer.Option()] = Device.cpu,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show words as they come.")] = True,
) -> None:
    """Answer a prompt about images, by LLaVA-VR or any image-text-to-text model of transformers.

    The answer goes to stdout. The prompt is written by the chat template that was saved with the model.
    """
    require("models", "PIL", "transformers")
    import torch
    from transformers import TextStreamer

    from vr_kernels.models.inference import Assistant, open_image
    from vr_kernels.models.prompts import user_message

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    try:
        images = [open_image(file) for file in image or []]
        message = user_message(prompt, len(images))
        assistant = Assistant.load(model, device=device.value, dtype=dtype.value)
        inputs = assistant.inputs([[message]], [images])
        if stream:
            options["streamer"] = TextStreamer(assistant.tokenizer, skip_prompt=True, skip_special_tokens=True)
        (answer,) = assistant.generate(inputs, **options)
    except (OSError, ValueError) as reason:
        typer.echo(f"vr-kernels generate: {reason}", err=True)
        raise typer.Exit(1) from None
    if not stream:
        typer.echo(answer)
