"""``vr-kernels info``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from vr_kernels.cli import environment


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Versions, processor, CUDA, what the native code was built for, and which backends can run and why."""
    report = environment.report()
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    _print(Console(highlight=False), report)


def _print(console: Console, parts: dict[str, Any], depth: int = 0) -> None:
    for name, part in parts.items():
        shown = ", ".join(map(str, part)) if isinstance(part, list) else part
        line = "  " * depth + (f"{name}" if isinstance(part, dict) else f"{name}: {shown}")
        # Soft wrapping: a sentence copied out of a terminal into a bug report should not be broken by its width.
        console.print(line, style="bold" if depth == 0 else None, markup=False, soft_wrap=True)
        if isinstance(part, dict):
            _print(console, part, depth + 1)
