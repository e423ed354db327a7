"""``vr-kernels app``."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vr_kernels.cli.bench import Device
from vr_kernels.cli.checks import require
from vr_kernels.cli.generate import Dtype
from vr_kernels.cli.progress import progress

# Of a clone: the small models of the reproduction, which name the digits of a row: "row 3 :".
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "models"
SMALL_MODELS = {"pooled": "digits-pooled", "Vision Remember": "digits-vision-remember"}
SMALL_IMAGES = "digits-questions"


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A column's title, and a folder that save_pretrained wrote. Repeatable. "
            "Default, in a clone: the small models that name digits, asked as in 'row 3 :'.",
        ),
    ] = None,
    examples: Annotated[Path | None, typer.Option(metavar="DIR", help="Images that may be picked.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds of one model's answer.")] = 60,
    dtype: Annotated[Dtype, typer.Option(help="auto: as saved.")] = Dtype.auto,
    device: Annotated[Device, typer.Option()] = Device.cpu,
    host: Annotated[str, typer.Option(help="Where the page is served; 0.0.0.0: to everyone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Open a page that asks several models the same question about an image, and shows what they looked at."""
    require("app", "gradio", "matplotlib", "PIL", "transformers")
    from vr_kernels.cli.page.contenders import Contender, Limits
    from vr_kernels.cli.page.uploads import images_in

    try:
        folders = named_folders(model) if model else small_models()
        if examples is None and not model:
            examples = RESULTS / SMALL_IMAGES
        offered = [] if examples is None else images_in(examples)
        contenders = []
        with progress("loading") as tell:
            for name, folder in folders.items():
                tell(name)
                contenders.append(Contender(name, folder, device=device.value, dtype=dtype.value))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # ends the page as Ctrl+C does
        # What is uploaded lies where only this user can read it, and is gone when the page ends.
        with tempfile.TemporaryDirectory(prefix="vr-kernels-app-") as uploads:
            os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read by Gradio's import
            from vr_kernels.cli.page.layout import build, launch

            launch(build(contenders, offered, Limits(max_new_tokens, time_limit)), host, port)
    except (OSError, ValueError) as reason:
        typer.echo(f"vr-kernels app: {reason}", err=True)
        raise typer.Exit(1) from None


def named_folders(models: list[str]) -> dict[str, Path]:
    """From NAME=DIR.

    Raises:
        ValueError: one without name or folder; a name given twice.
    """
    folders: dict[str, Path] = {}
    for model in models:
        name, _, folder = model.partition("=")
        if not (name.strip() and folder):
            raise ValueError(f"--model {model}: it must be NAME=DIR")
        if name in folders:
            raise ValueError(f"--model {model}: another model has this name")
        folders[name] = Path(folder)
    return folders


def small_models() -> dict[str, Path]:
    """
    Raises:
        ValueError: an installation without them.
    """
    if not RESULTS.is_dir():
        raise ValueError("no model is named; --model NAME=DIR names one, and may be repeated")
    return {name: RESULTS / folder for name, folder in SMALL_MODELS.items()}
