"""``vr-kernels bench``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from vr_kernels.cli.checks import require, require_folder
from vr_kernels.cli.measure import report
from vr_kernels.cli.measure.bench import Case
from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.run import AnyBench, Incorrect, Result, run_case
from vr_kernels.cli.measure.timing import openmp_note
from vr_kernels.cli.progress import progress

Operator = Enum("Operator", {name: name for name in BENCHES}, type=str)  # type: ignore[misc]


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
        typer.Option(metavar="NAME", help="A shape by name; repeatable, or all. Default: the papers'."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option()] = Dtype.float32,
    batch: Annotated[int, typer.Option(min=1, help="How many images.")] = 1,
    heads: Annotated[int | None, typer.Option(min=1, help="Default: the shape's own.")] = None,
    device: Annotated[Device, typer.Option()] = Device.cpu,
    backward: Annotated[
        bool,
        typer.Option("--backward/--no-backward", help="Add the gradients of what is trained."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A baseline by name; repeatable. Default: all that apply."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Rounds, in each of which every contender runs once.")] = 15,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small, three rounds: whether it works, not how fast.")
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
    measured = BENCHES[operator.value]
    settings: dict[str, Any] = {"dtype": dtype.value, "batch": batch, "device": device.value, "backward": backward}
    if heads is not None:
        settings["heads"] = heads
    try:
        cases = [
            replace(measured.shapes[name], **settings)
            for name in _chosen("--shape", shape, tuple(measured.shapes), measured.default)
        ]
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    if quick:
        cases, repeats = [case.quick() for case in cases], 3
    baselines = _chosen("--compare", compare, measured.baselines, measured.baselines)

    def keep(results: Sequence[Result], cases: Sequence[Case]) -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(report.record(measured, results, cases), indent=2) + "\n")

    results: list[Result] = []
    if device is Device.cuda and not torch.cuda.is_available():
        report.print_plan(console, measured, cases, baselines)
        keep([], cases)
    else:
        for result in _measure(console, measured, cases, baselines, repeats):
            results.append(result)
            keep(results, cases[: len(results)])  # now: what comes next may end the process
    if json_file is not None:
        console.print(f"record: {json_file}", soft_wrap=True)
    if plot is not None and results:
        from vr_kernels.cli.measure.plot import plot as draw

        draw(measured, results, plot)
        console.print(f"picture: {plot}", soft_wrap=True)


def _chosen(option: str, asked: list[str] | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The names that a repeatable option selects."""
    if not asked or asked == ["all"]:
        return list(default)
    for name in asked:
        if name not in known:
            raise typer.BadParameter(f"{option} {name}: it may be all, or one of {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _measure(
    console: Console, bench: AnyBench, cases: Sequence[Case], baselines: Sequence[str], repeats: int
) -> Iterator[Result]:
    note = openmp_note() if cases[0].device == "cpu" else None
    if note is not None:
        console.print(note)
    for case in cases:
        with progress(case.name) as tell:
            try:
                result = run_case(bench, case, baselines, repeats, tell)
            except Incorrect as error:
                console.print(str(error), style="bold red")
                raise typer.Exit(1) from error
        report.print_result(console, bench, result)
        yield result
    report.print_method(console, bench, cases[0])
