"""Makes docs/performance.md and its rooflines from a GPU's records in bench/results/h200; --write puts them there."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_table import figure, spread, table

ROOT = Path(__file__).resolve().parents[1]
RECORDS, PAGE = ROOT / "bench" / "results" / "h200", ROOT / "docs" / "performance.md"
FIGURES = "figures/performance"  # beside the page

HEADER = """# Performance on a GPU

Made by `bench/performance.py` from the records in `bench/results/h200`; [How to read the benchmarks](measuring.md) says
how they are measured, and how they are made.
"""
NOTHING = """
There is no such record yet: nothing in this documentation was measured on a GPU.
"""
OPERATORS = """
Medians of GPU time with a cold L2, with the middle 80 % of the rounds in brackets. A ratio is a contender's time over
ours, taken within each round: above 1 is where we win. The floor is the larger of two times, that of the operations at
the rate of a large GEMM and that of the bytes at the rate of a large copy, both measured in the same rounds. TFLOP/s
and GB/s count those operations and bytes alone.
"""

Record = dict[str, Any]


def records(folder: Path) -> Iterator[tuple[str, Record]]:
    """By name, in its order: what was measured, and the environment alone is not."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("measured") or "launches" in record or "training" in record:
            yield path.stem, record


def page(folder: Path) -> str:
    found = list(records(folder))
    kinds = (("operator", OPERATORS, _operator), ("launches", "", _launches), ("training", "", _training))
    parts = [HEADER, *([] if found else [NOTHING])]
    for kind, words, section in kinds:
        of_kind = [(name, record) for name, record in found if kind in record]
        parts += [words] * bool(of_kind) + [section(name, record) for name, record in of_kind]
    return "".join(parts)


def _operator(name: str, record: Record) -> str:
    case = record["cases"][0]["case"]
    direction = "forward + backward" if case["backward"] else "forward"
    heads = f", {case['heads']} heads" if "heads" in case else ""
    lines = [
        f"\n## {record['operator']}: batch {case['batch']}{heads}, {case['dtype']}, {direction}\n",
        f"{_environment(record)}\n",
        f"    {record['command']}\n",
        f"![Roofline]({FIGURES}/{name}.png)\n",
    ]
    for case in record["cases"]:
        ceilings, gigaflop = case["ceilings"], case["operations"] / 1e9
        lines += [
            f"**{case['case']['name']}**: floor {case['floor'] * 1e6:.0f} µs, of {gigaflop:.1f} GFLOP at "
            f"{ceilings['flops'] / 1e12:.0f} TFLOP/s and {case['bytes'] / 1e6:.0f} MB at "
            f"{ceilings['bandwidth'] / 1e12:.2f} TB/s\n",
            *table(
                ["contender", "µs", "of floor", "TFLOP/s", "GB/s", "MB", "error", "/ ours"],
                [_row(case, row) for row in case["rows"]],
            ),
            "",
            *_details(case),
            *[f"* {remark}" for remark in case["losses"]],
            *[f"* `{absent}` not measured: {reason}" for absent, reason in case["absent"].items()],
            "",
        ]
    what = {row["name"]: row["what"] for case in record["cases"] for row in case["rows"]}
    return "\n".join([*lines, *[f"* `{contender}`: {words}" for contender, words in what.items()], ""])


def _row(case: Record, row: Record) -> list[str]:
    seconds = row["seconds"]
    return [
        row["name"],
        spread({key: value * 1e6 for key, value in seconds.items()}, 0),
        f"{row['of_floor']:.0%}",
        f"{case['operations'] / seconds['median'] / 1e12:.1f}",
        f"{case['bytes'] / seconds['median'] / 1e9:.0f}",
        "?" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}",
        "" if row["error"] is None else f"{row['error']:.1e}",
        spread(row["ratio"]),
    ]


def _details(case: Record) -> list[str]:
    found = {name: details for name, details in case.get("details", {}).items() if details}
    if not found:
        return []
    header = ["", *next(iter(found.values()))]
    return [*table(header, [[name, *map(figure, details.values())] for name, details in found.items()]), ""]


def _launches(name: str, record: Record) -> str:
    """A call from outside, and inside: where what is busy is far below the call, launches are what takes the time."""
    lines = [
        f"\n## Launches of {record['launches']}: batch {record['batch']}, {record['dtype']}\n",
        _environment(record),
    ]
    for case in record["cases"]:
        rows = []
        for contender, found in case["contenders"].items():
            if "failed" in found:
                rows.append([contender, found["failed"], "", "", ""])
                continue
            longest = ", ".join(f"`{k['name'][:60]}` {k['us']:.0f}" for k in found["kernels"][:3])
            rows.append(
                [contender, f"{found['us']:.0f}", f"{found['launches']:g}", f"{found['busy, us']:.0f}", longest]
            )
        lines += [f"\n**{case['case']}**: {case['sizes']}\n"]
        lines += table(["contender", "µs a call", "launches", "GPU busy, µs", "longest kernels, µs"], rows)
    return "\n".join([*lines, ""])


def _training(name: str, record: Record) -> str:
    columns = list(record["rows"][0])
    rows = [[figure(v) if isinstance(v, float) else str(v) for v in row.values()] for row in record["rows"]]
    lines = [f"\n## A training step: {record['training']}\n", f"{_environment(record)}; {record['sizes']}\n"]
    return "\n".join([*lines, *table(columns, rows), ""])


def _environment(record: Record) -> str:
    environment = record["environment"]
    cuda, versions = environment["CUDA"], environment["versions"]
    device, driver = cuda["devices"][0], cuda.get("driver", "unknown")
    return f"{device}, driver {driver}, torch {versions['torch']}, triton {versions['triton']}, {record['date'][:10]}"


def draw_rooflines(folder: Path, target: Path) -> None:
    """One picture a record: where each contender stands below what the GPU's GEMM and copy allow."""
    shutil.rmtree(target, ignore_errors=True)
    for name, record in records(folder):
        if "operator" not in record:
            continue
        from matplotlib.figure import Figure  # an extra, which a page without pictures does not need

        figure = Figure(figsize=(5 * len(record["cases"]), 4), layout="constrained")
        panels = figure.subplots(1, len(record["cases"]), squeeze=False)[0]
        for axes, case in zip(panels, record["cases"], strict=True):
            flops, bandwidth = case["ceilings"]["flops"], case["ceilings"]["bandwidth"]
            intensity = case["operations"] / case["bytes"]
            edge = flops / bandwidth
            along = [min(intensity, edge) / 10, edge, 10 * max(intensity, edge)]
            axes.plot(along, [min(flops, bandwidth * x) / 1e12 for x in along], color="tab:green")
            for row in case["rows"]:
                rate = case["operations"] / row["seconds"]["median"] / 1e12
                colour = "tab:orange" if row["name"] == "ours" else "tab:gray"
                axes.plot([intensity], [rate], "o", color=colour)
                axes.annotate(row["name"], (intensity, rate), xytext=(6, -3), textcoords="offset points", fontsize=7)
            axes.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="TFLOP/s", title=case["case"]["name"])
        figure.suptitle(f"{record['operator']}, {_environment(record)}", fontsize=9)
        target.mkdir(parents=True, exist_ok=True)
        figure.savefig(target / f"{name}.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(RECORDS))
        draw_rooflines(RECORDS, PAGE.parent / FIGURES)
    else:
        print(page(RECORDS), end="")
