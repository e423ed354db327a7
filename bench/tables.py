"""Makes docs/benchmarks.md and the README's summary of it from the committed records; --write puts them there."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_table import figure, spread, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, PAGE = ROOT / "bench" / "results", ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by bench/tables.py -->\n", "<!-- end of bench/tables.py -->\n"

HEADER = """# Benchmarks

Made by `bench/tables.py` from the records in `bench/results`; `bench/README.md` explains how they are measured. A ratio
is another contender's time over ours, taken within each round: above 1 is where we win. Medians, with the middle 80 %
of the rounds in brackets. Results were checked against float64 before a time was taken.
"""

BUDGET = {"no_grad": 12, "inference_mode": 6, "grad": 20}  # microseconds of a call's own

Record = dict[str, Any]


def records() -> Iterator[Record]:
    """In the order of their files' names: by operator, device, dtype and direction.

    A command names the file that it is in now: some were called otherwise when they were written.
    """
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        if record["measured"]:
            record["command"] = re.sub(r"(?<= --json )\S+", f"bench/results/{path.name}", record["command"])
            yield record


def page() -> str:
    return "\n".join([HEADER, *[part for record in records() for part in _of_record(record)], *_overhead()])


def summary() -> str:
    """A row a record: the ratios of its shapes, one after the other."""
    head = ["operator", "run", "shapes", "stock / ours", "closest other / ours"]
    rows = []
    for record in records():
        cases = record["cases"]
        closest = [_closest(record, case) for case in cases]
        cells = [
            f"`{record['operator']}`",
            f"{_kind(record)}; {_device(record)[0]}",
            ", ".join(case["case"]["name"] for case in cases),
            ", ".join(_ratio(case, record["yardstick"]) for case in cases),
            ", ".join(closest) if any(closest) else "",
        ]
        rows.append(cells)
    return "\n".join(table(head, rows, align="---")) + "\n"


def in_readme(text: str) -> str:
    """The README's text with its summary made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + summary() + END + rest.split(END)[1]


def _of_record(record: Record) -> list[str]:
    environment, stock = record["environment"], record["yardstick"]
    others = list(dict.fromkeys(row["name"] for c in record["cases"] for row in c["rows"] if row["name"] != "ours"))
    header = ["shape", "ours, ms", *[f"{name} / ours" for name in others], "of floor", "MB, ours", f"MB, {stock}"]
    return [
        f"## {record['operator']}: {_kind(record)}\n",
        f"{_device(record)[1]}, torch {environment['versions']['torch']}, {record['date'][:10]}\n",
        f"    {record['command']}\n",
        *table(header, [_of_case(case, others, stock) for case in record["cases"]]),
        "",
        *[line for case in record["cases"] for line in _details(case)],
        *_contenders(record["cases"]),
        *[f"* {case['case']['name']}: {remark}" for case in record["cases"] for remark in _remarks(case)],
        "",
    ]


def _of_case(case: Record, others: list[str], stock: str) -> list[str]:
    rows = {row["name"]: row for row in case["rows"]}
    shown = rows.keys() - {_itself(case)}
    ratios = [spread(rows[name]["ratio"]) if name in shown else "" for name in others]
    peaks = [rows.get(name, {}).get("memory") for name in ("ours", stock)]
    megabytes = ["" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks]
    time, of_floor = figure(rows["ours"]["seconds"]["median"] * 1e3), f"{rows['ours']['of_floor']:.0%}"
    return [case["case"]["name"], time, *ratios, of_floor, *megabytes]


def _contenders(cases: list[Record]) -> list[str]:
    """What each is: in one line, or where that depends on the shape, in one for the shapes of each."""
    shapes: dict[str, dict[str, list[str]]] = {}  # of each contender, by what it is
    for case in cases:
        for row in case["rows"]:
            shapes.setdefault(row["name"], {}).setdefault(row["what"], []).append(case["case"]["name"])
    return [
        f"* `{name}`{'' if len(found) == 1 else ' at ' + ', '.join(where)}: {words}"
        for name, found in shapes.items()
        for words, where in found.items()
    ]


def _itself(case: Record) -> str | None:
    """The contender that ours is: the backend that it got is measured once more, by name."""
    what = {row["name"]: row["what"] for row in case["rows"]}
    return next((name for name in what if what["ours"] == f"vr_kernels, backend {name}"), None)


def _details(case: Record) -> list[str]:
    """A table of what else was found of each contender."""
    found = {name: details for name, details in case.get("details", {}).items() if details}
    if not found:
        return []
    header = [case["case"]["name"], *next(iter(found.values()))]
    return [*table(header, [[name, *map(figure, details.values())] for name, details in found.items()]), ""]


def _remarks(case: Record) -> list[str]:
    """Where ours loses, what was measured twice, and what was not measured."""
    itself = _itself(case)
    losses = [line for line in case["losses"] if not line.startswith(f"Ours loses to {itself} ")]
    twice = [
        f"`{name}` is what ours is here: measured twice, one takes {spread(row['ratio'])} times the other's time."
        for row in case["rows"]
        if (name := row["name"]) == itself
    ]
    return losses + twice + [f"`{name}` not measured: {reason}" for name, reason in case["absent"].items()]


def _ratio(case: Record, name: str) -> str:
    found = [row["ratio"]["median"] for row in case["rows"] if row["name"] == name]
    return f"{found[0]:.2f}" if found else "?"


def _closest(record: Record, case: Record) -> str:
    """The fastest of the others, beside stock."""
    no_other = ("ours", record["yardstick"], _itself(case))
    others = [row for row in case["rows"] if row["name"] not in no_other and row.get("rival", True)]
    if not others:
        return ""
    best = min(others, key=lambda row: row["ratio"]["median"])
    return f"{best['ratio']['median']:.2f} {best['name']}"


def _kind(record: Record) -> str:
    case = record["cases"][0]["case"]
    return f"{case['dtype']}, {'forward + backward' if case['backward'] else 'forward'}"


def _device(record: Record) -> tuple[str, str]:
    """In short, and in full."""
    if record["cases"][0]["case"]["device"] == "cuda":
        name = record["environment"]["CUDA"]["devices"][0]
        return name, name
    processor = record["environment"]["CPU"]
    return processor["model"], f"{processor['model']}, {processor['threads']} threads"


def _overhead() -> list[str]:
    """Of a call, from the record of ``bench/overhead.py``."""
    record = json.loads((RESULTS / "overhead_cpu.json").read_text())
    header = ["operator", "around it", "call, us", "overhead, us", "the rounds' differences, us", "at most, us"]
    rows = [
        [
            f"`{row['operator']}`",
            row["surrounding"],
            f"{row['whole']:.1f}",
            f"{row['least']:.1f}",
            spread(row["differences"], 1),
            str(BUDGET[row["surrounding"]]),
        ]
        for row in record["rows"]
    ]
    return [
        "## What a call costs beside its work\n",
        f"{record['environment']['CPU']['model']}, one thread, torch {record['environment']['versions']['torch']}, "
        f"{record['date'][:10]}\n",
        f"    {record['command']}\n",
        "The least of a tiny call's times less the least of its implementation's alone: checks and dispatch. The last "
        "column is what they were meant to cost.\n",
        *table(header, rows),
        "",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page())
        README.write_text(in_readme(README.read_text()))
    else:
        print(page(), end="")
