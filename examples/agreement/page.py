"""The column of docs/methods.md that the record decides. All other columns are written by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from examples.agreement.compare import Row
from examples.agreement.sources import ROOT

PAGE = ROOT / "docs" / "methods.md"
HEADING = "## Run against their authors' code"
COLUMNS = ("method", "their code", "agreed", "differs")


def with_record(page: str, rows: Sequence[Row]) -> str:
    """The page, with what agreed in each row of its table."""
    before, heading, section = page.partition(HEADING + "\n")
    methods = dict.fromkeys(row.method for row in rows)
    lines = section.split("\n")
    for number, line in enumerate(lines):
        cells = line.split("|")[1:-1]
        name = re.match(r" `?([\w.]+)", cells[0]) if len(cells) == len(COLUMNS) else None
        if name is None or name[1] == COLUMNS[0]:
            continue
        if name[1] not in methods:
            raise ValueError(f"docs/methods.md has a row of {name[1]}, or two; the record has {', '.join(methods)}")
        del methods[name[1]]
        cells[2] = f" {agreed([row for row in rows if row.method == name[1]])} "
        lines[number] = f"|{'|'.join(cells)}|"
    if methods:
        raise ValueError(f"docs/methods.md has no row of {', '.join(methods)}")
    return before + heading + "\n".join(lines)


def agreed(rows: Sequence[Row]) -> str:
    """The worst of each variant and dtype."""
    parts = []
    for variant in dict.fromkeys(row.variant for row in rows):
        of_variant = [row for row in rows if row.variant == variant]
        sizes = len({row.case for row in of_variant})
        by_dtype = {
            dtype: worst([row for row in of_variant if row.dtype == dtype])
            for dtype in dict.fromkeys(row.dtype for row in of_variant)
        }
        title = f"{variant}, " * bool(variant) + f"{sizes} size{'s' * (sizes > 1)}"
        if len(set(by_dtype.values())) == 1 and len(by_dtype) > 1:
            parts.append(f"{title}: {next(iter(by_dtype.values()))}")
        else:
            parts.append(f"{title}: " + ", ".join(f"{dtype} {text}" for dtype, text in by_dtype.items()))
    return "; ".join(parts)


def worst(rows: Sequence[Row]) -> str:
    text = []
    if rows[0].same is not None:
        same, runs = sum(row.same or 0 for row in rows), sum(row.runs for row in rows)
        own = sum(row.own or 0 for row in rows) if rows[0].own is not None else runs
        text.append(f"the same tokens in {same} of {runs}" + f" (theirs with itself: {own})" * (own < runs))
    errors = [
        max(values)
        for values in (
            [row.outputs for row in rows if row.outputs is not None],
            [row.gradients for row in rows if row.gradients is not None],
        )
        if values
    ]
    if errors:
        text.append(" / ".join(map(rounded_up, errors)) if any(errors) else "bit for bit")
    return " and ".join(text)


def rounded_up(error: float) -> str:
    """To one digit; no smaller than it is."""
    if error == 0:
        return "0"
    exponent = math.floor(math.log10(error))
    digit = math.ceil(error / 10**exponent)
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"
