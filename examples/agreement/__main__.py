"""The command: fetches the authors' code, runs ours beside it, and puts what came out into docs/methods.md."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examples.agreement.compare import Row

STEPS = ("fetch", "table")


def main() -> None:
    # A sum's order, and so its last digits, depends on the threads; torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from examples.agreement import page, run, sources

    parser = argparse.ArgumentParser(
        prog="python -m examples.agreement",
        description=__doc__,
        epilog=f"METHOD: {', '.join(run.METHODS)}. With no name all of them are run, and the record is written.",
    )
    parser.add_argument("names", nargs="*", metavar="fetch | table | METHOD")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in (*STEPS, *run.METHODS)]:
        parser.error(f"no such step or method: {', '.join(unknown)}")
    if "fetch" in names:
        sources.fetch()
    methods = [name for name in names if name not in STEPS] or (() if names else run.METHODS)
    rows = [row for name in methods for row in show(run.compared(name))]
    if not names:
        run.write_record(rows)
    if "table" in names:
        page.PAGE.write_text(page.with_record(page.PAGE.read_text(), run.recorded()))


def show(rows: list[Row]) -> list[Row]:
    """As soon as they are there."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "", "case", "dtype", "outputs", "gradients", "same tokens")
    for row in rows:
        errors = ("" if error is None else f"{error:.1e}" for error in (row.outputs, row.gradients))
        table.add_row(
            row.method,
            row.variant,
            row.case,
            row.dtype,
            *errors,
            "" if row.same is None else f"{row.same} of {row.runs}",
        )
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
