"""``vr-kernels demo``: the main job, on digits and charts that were not trained on and on a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vr_kernels.cli.checks import require, require_folder


def demo(
    output: Annotated[Path, typer.Option(help="Where the picture (PNG) goes.")] = Path("vr-kernels-demo.png"),
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The trained models. Default: docs/results/models of the clone.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds; a small encoder and one tile.")] = False,
) -> None:
    """Read digits and charts with and without Vision Remember, then measure its operator on a photograph.

    First, for each, two small trained LLaVA-VR models, which differ in Vision Remember alone, answer questions about
    images that neither was trained on: answers beside the truth, time to the first token, memory. Then a window
    resampler of stock PyTorch and LocalCrossAttention get the same features and weights: outputs, times, memory. One
    picture shows all.
    """
    require("demo", "matplotlib", "skimage", "transformers")
    require_folder(output)
    from matplotlib.figure import Figure

    from vr_kernels.cli.demonstration import answers, features, operators, reading

    console = Console(highlight=False, soft_wrap=True)
    folder = models or answers.MODELS
    try:
        tasks = answers.tasks(folder)
        figure = Figure(figsize=(13, 12.4 + 4.6 * len(tasks)), layout="constrained")
        *above, below = figure.subfigures(len(tasks) + 1, 1, height_ratios=[4.6] * len(tasks) + [12.4])  # type: ignore[misc]  # its stub knows one
        for task, part in zip(tasks, above, strict=True):
            reading.show(console, folder, task, 3 if quick else 15, part)
    except (OSError, ValueError) as reason:
        typer.echo(
            f"vr-kernels demo: {reason}\nThe trained models stand in docs/results/models of the repository; --models "
            "names another folder of the same kind.",
            err=True,
        )
        raise typer.Exit(1) from None
    operators.show(console, features.QUICK if quick else features.FULL, 3 if quick else 9, below)
    figure.savefig(output, dpi=120)
    console.print(f"Picture: {output.resolve()}")
