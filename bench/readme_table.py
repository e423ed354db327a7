"""Prints the README's table of results from the committed records, or with --write puts it there."""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- made by bench/readme_table.py -->\n", "<!-- end of bench/readme_table.py -->\n"
EMPTY = "No record is committed yet; `vr-kernels bench local_cross_attention` measures on the machine at hand.\n"


def table() -> str:
    """One table a record, a row a shape, in the order of the files' names."""
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "bench" / "results").glob("*.json"))]
    return "\n".join(part for record in records if record["measured"] for part in _of_record(record)) or EMPTY


def _of_record(record: dict[str, Any]) -> list[str]:
    environment, case = record["environment"], record["cases"][0]["case"]
    direction = "forward + backward" if case["backward"] else "forward"
    device = f"{environment['CPU']['model']}, {environment['CPU']['threads']} threads"
    if case["device"] == "cuda":
        device = environment["CUDA"]["devices"][0]
    baselines = list(dict.fromkeys(row["name"] for c in record["cases"] for row in c["rows"] if row["name"] != "ours"))
    header = ["shape", "ours, ms", *[f"{name} / ours" for name in baselines], "of floor", "MB, ours", "MB, naive"]
    return [
        f"**{case['dtype']}, {direction}**: {device}, torch {environment['versions']['torch']}, {record['date'][:10]}, "
        f"`{record['command']}`\n",
        _line(header),
        _line(["---", *["---:"] * (len(header) - 1)]),
        *[_line(_of_case(measured, baselines)) for measured in record["cases"]],
        "",
    ]


def _of_case(measured: dict[str, Any], baselines: list[str]) -> list[str]:
    rows = {row["name"]: row for row in measured["rows"]}
    ours = rows["ours"]
    ratios = [f"{rows[name]['ratio']['median']:.2f}" if name in rows else "" for name in baselines]
    peaks = [rows.get(name, {}).get("memory") for name in ("ours", "naive")]
    megabytes = ["" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks]
    time, of_floor = f"{ours['seconds']['median'] * 1e3:.1f}", f"{ours['of_floor']:.0%}"
    return [measured["case"]["name"], time, *ratios, of_floor, *megabytes]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_readme(text: str) -> str:
    """The README's text with its table made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        readme.write_text(in_readme(readme.read_text()))
    else:
        print(table(), end="")
