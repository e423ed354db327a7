"""``vr-kernels train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vr_kernels.cli.checks import require

if TYPE_CHECKING:
    from vr_kernels.models.training.phases import GroupSize


def train(
    config: Annotated[Path, typer.Option(help="The settings (YAML); examples/train has one for each phase.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
) -> None:
    """Train a phase of Vision Remember: projector and blocks, or the language model as well.

    On several GPUs: accelerate launch --config_file examples/train/ddp.yaml --no_python vr-kernels train --config ...
    """
    require("train", "accelerate", "matplotlib", "PIL", "transformers", "yaml")
    from vr_kernels.models.training import BadSampleError, TrainConfig
    from vr_kernels.models.training import train as run

    console = Console(highlight=False, soft_wrap=True)
    try:
        result = run(TrainConfig.from_yaml(config), resume=resume, report=lambda sizes: _print_sizes(console, sizes))
    except (ValueError, OSError) as reason:
        # A bad sample is met while a progress bar stands in the line.
        start = "\n" if isinstance(reason, BadSampleError) else ""
        typer.echo(f"{start}vr-kernels train: {' '.join(str(reason).split())}", err=True)
        raise typer.Exit(1) from None
    if os.environ.get("RANK", "0") == "0":
        console.print(
            f"Model: {result.model.resolve()}\n"
            f"Steps: {result.steps}, mean loss {result.loss:.4f}, bad samples: {result.bad_samples}"
        )


def _print_sizes(console: Console, sizes: dict[str, GroupSize]) -> None:
    table = Table("modules", "parameters", "trained", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for group, size in sizes.items():
        table.add_row(group, f"{size.parameters:,}", "yes" if size.trained else "no")
    trained = sum(size.parameters for size in sizes.values() if size.trained)
    table.add_section()
    table.add_row("all", f"{sum(size.parameters for size in sizes.values()):,}", f"{trained:,}")
    console.print(table)
