"""``vr-kernels bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from vr_kernels.cli.checks import require, require_folder
from vr_kernels.cli.measure import report
from vr_kernels.cli.measure.cases import PAPER_SHAPES, SHAPES, Case
from vr_kernels.cli.measure.contenders import BASELINES
from vr_kernels.cli.measure.run import Incorrect, Result, run_case
from vr_kernels.cli.measure.timing import openmp_note
from vr_kernels.cli.progress import progress


class Operator(str, Enum):
    local_cross_attention = "local_cross_attention"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


def bench(
    operator: Annotated[Operator, typer.Argument(help="What to measure.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"{', '.join(SHAPES)}; repeatable, or all. Default: the papers' three."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option()] = Dtype.float32,
    batch: Annotated[int, typer.Option(min=1, help="Images, of five tiles each.")] = 1,
    heads: Annotated[int, typer.Option(min=1)] = 24,
    device: Annotated[Device, typer.Option()] = Device.cpu,
    backward: Annotated[
        bool,
        typer.Option("--backward/--no-backward", help="Add the gradients of query and weights; features are frozen."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"{', '.join(BASELINES)}; repeatable. Default: all that apply."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Rounds, in each of which every contender runs once.")] = 15,
    quick: Annotated[
        bool, typer.Option("--quick", help="One tile, three rounds: whether it works, not how fast.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) to this file.")] = None,
) -> None:
    """Measure an operator against every way to compute the same today, and against what the hardware allows.

    Results are checked against float64 first: wrong ones end the run with exit code 1, before a time is taken.
    """
    require_folder(json_file, plot)
    if plot is not None:
        require("bench", "matplotlib")
    console = Console(highlight=False)
    cases = [
        replace(SHAPES[name], dtype=dtype.value, batch=batch, heads=heads, device=device.value, backward=backward)
        for name in _chosen("--shape", shape, tuple(SHAPES), PAPER_SHAPES)
    ]
    for case in cases:
        if case.channels % heads != 0:
            raise typer.BadParameter(f"{heads} heads do not divide the {case.channels} channels of {case.name}")
    if quick:
        cases, repeats = [replace(case, tiles=1) for case in cases], 3
    baselines = _chosen("--compare", compare, BASELINES, BASELINES)

    results: list[Result] = []
    if device is Device.cuda and not torch.cuda.is_available():
        report.print_plan(console, cases, baselines)
    else:
        results = _measure(console, cases, baselines, repeats)
    if json_file is not None:
        json_file.write_text(json.dumps(report.record(results, cases), indent=2) + "\n")
        console.print(f"record: {json_file}", soft_wrap=True)
    if plot is not None and results:
        from vr_kernels.cli.measure.plot import plot as draw

        draw(results, plot)
        console.print(f"picture: {plot}", soft_wrap=True)


def _chosen(option: str, asked: list[str] | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The names that a repeatable option selects."""
    if not asked or asked == ["all"]:
        return list(default)
    for name in asked:
        if name not in known:
            raise typer.BadParameter(f"{option} {name}: it may be all, or one of {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _measure(console: Console, cases: Sequence[Case], baselines: Sequence[str], repeats: int) -> list[Result]:
    note = openmp_note() if cases[0].device == "cpu" else None
    if note is not None:
        console.print(note)
    results = []
    for case in cases:
        with progress(case.name) as tell:
            try:
                result = run_case(case, baselines, repeats, tell)
            except Incorrect as error:
                console.print(str(error), style="bold red")
                raise typer.Exit(1) from error
        report.print_result(console, result)
        results.append(result)
    report.print_method(console, cases[0].device)
    return results
