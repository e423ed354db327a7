"""What a benchmark found: a table to read, a record to keep, and what the arithmetic alone says where nothing ran."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vr_kernels.cli import environment
from vr_kernels.cli.measure.bench import Case
from vr_kernels.cli.measure.floor import h200
from vr_kernels.cli.measure.memory import METHODS
from vr_kernels.cli.measure.run import AnyBench, Result
from vr_kernels.cli.measure.timing import Spread

COLUMNS = ("contender", "ms", "10-90 %", "of floor", "MB", "error", "x ours", "10-90 %")


def print_result(console: Console, bench: AnyBench, result: Result) -> None:
    case = result.case
    console.print(f"\n{case}", style="bold", soft_wrap=True)
    for verdict in result.verdicts:
        console.print(f"  {verdict}", soft_wrap=True)
    console.print(f"  {_floor_line(bench, result)}", soft_wrap=True)
    table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result.rows:
        table.add_row(
            row.name,
            *_spread(Spread(*(value * 1e3 for value in row.seconds))),
            f"{row.of_floor:.0%}",
            megabytes(row.memory),
            "-" if row.error is None else f"{row.error:.1e}",
            *_spread(row.ratio),
        )
    console.print(table)
    if any(result.details.values()):
        _print_details(console, result.details)
    for row in result.rows:
        console.print(f"  {row.name}: {row.what}")
    for name, reason in result.absent.items():
        console.print(f"  {name}: not measured ({reason})", markup=False, soft_wrap=True)
    for line in losses(result):
        console.print(f"  {line}", style="bold red", soft_wrap=True)


def _print_details(console: Console, details: dict[str, dict[str, float]]) -> None:
    names = next(iter(details.values()))
    table = Table("contender", *names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for contender, found in details.items():
        table.add_row(contender, *(figures(found[name]) for name in names))
    console.print(table)


def losses(result: Result) -> list[str]:
    """Where ours is not the fastest to compute the same, in words: the backend that it is does not beat it."""
    own = next(row.what for row in result.rows if row.name == "ours")
    return [
        f"Ours loses to {row.name} here: {row.name} takes {row.ratio.median:.2f} times our time."
        for row in result.rows
        if row.rival and row.ratio.median < 1 and own != f"vr_kernels, backend {row.name}"
    ]


def print_method(console: Console, bench: AnyBench, case: Case) -> None:
    device = case.device
    clock = "GPU time between events with a cold L2" if device == "cuda" else "wall time"
    lines = [
        f"ms: median {clock}, over rounds in which every contender ran once, in changing order",
        "of floor: the floor's time over this one, taken within each round",
        f"MB: {METHODS[device]}; output and gradients count",
        f"error: the largest deviation from {bench.truth(case)} by the largest value, over output and gradients",
        "x ours: this time over ours, taken within each round",
    ]
    console.print("\n".join(lines), soft_wrap=True)


def print_plan(console: Console, bench: AnyBench, cases: Sequence[Case], baselines: Sequence[str]) -> None:
    """What would run, and what the arithmetic says."""
    table = Table("case", "sizes", "GFLOP", "MB", "floor, us", box=SIMPLE_HEAD)
    for case in cases:
        table.add_row(
            case.name,
            case.sizes,
            f"{bench.operations(case) / 1e9:.1f}",
            f"{bench.bytes_moved(case) / 1e6:.0f}",
            f"{_h200_floor(bench, case) * 1e6:.0f}",
        )
    ceilings = h200(cases[0].dtype)
    console.print(f"{cases[0].dtype}, {cases[0].direction}; ours against {', '.join(baselines)}", soft_wrap=True)
    console.print(table)
    console.print(
        f"Floor at {ceilings.flops / 1e12:.0f} TFLOP/s and {ceilings.bandwidth / 1e12:.1f} TB/s: {ceilings.source}.",
        soft_wrap=True,
    )
    console.print("There is no CUDA device here: nothing was measured.", style="bold")


def record(bench: AnyBench, results: Sequence[Result], cases: Sequence[Case]) -> dict[str, Any]:
    """Everything that a reader needs to believe the numbers, or to repeat them."""
    measured = {result.case: result for result in results}
    return {
        "operator": bench.name,
        "yardstick": bench.yardstick,
        "measured": bool(results),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["vr-kernels", *sys.argv[1:]]),
        "environment": environment.report(),
        "memory": METHODS[cases[0].device],
        "cases": [_case_record(bench, case, measured.get(case)) for case in cases],
    }


def _case_record(bench: AnyBench, case: Case, result: Result | None) -> dict[str, Any]:
    facts = {"case": asdict(case), "operations": bench.operations(case), "bytes": bench.bytes_moved(case)}
    if result is None:
        return {**facts, "ceilings": asdict(h200(case.dtype)), "floor": _h200_floor(bench, case)}
    rows = [{**asdict(row), "seconds": row.seconds._asdict(), "ratio": row.ratio._asdict()} for row in result.rows]
    return {**asdict(result), **facts, "rows": rows, "losses": losses(result)}


def _h200_floor(bench: AnyBench, case: Case) -> float:
    return h200(case.dtype).floor(bench.operations(case), bench.bytes_moved(case))


def _floor_line(bench: AnyBench, result: Result) -> str:
    case, ceilings = result.case, result.ceilings
    return (
        f"floor {result.floor * 1e3:.2f} ms: the larger of {bench.operations(case) / 1e9:.1f} GFLOP at "
        f"{ceilings.flops / 1e9:.0f} GFLOP/s and {bench.bytes_moved(case) / 1e6:.0f} MB at "
        f"{ceilings.bandwidth / 1e9:.1f} GB/s ({ceilings.source})"
    )


def _spread(spread: Spread) -> tuple[str, str]:
    """Two cells."""
    return figures(spread.median), f"{figures(spread.low)}-{figures(spread.high)}"


def figures(value: float) -> str:
    """Three significant figures, or all of a larger number."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def megabytes(memory: int | None) -> str:
    return "?" if memory is None else f"{memory / 1e6:.0f}"
