"""Tables and figures of a task, made of its records alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from examples.reproduction.records import MODELS, RECORDS, RESULTS, Record, read_record, record_path
from examples.reproduction.rows import ROWS, SEEDS, TABLES, Line, Table

HEADER = """# {title}

Made by `python -m examples.reproduction tables` from the records beside this page;
[examples/reproduction](../../examples/reproduction/README.md) says what was trained and how.

Accuracy is the share of digits that are right in greedy answers about {images} grids a run, of digit images that the
training saw and of others. It is a mean over seeds with its 95 % interval (Student's t); a gain is taken seed
by seed, on unseen digits. **decided** says whether a gain's interval leaves zero out, and where the paper has the
comparison, whether with the paper's sign. *last quarter* is what the last quarter of the steps added to the learning
curve. The arithmetic is that of one prefill; TTFT is processor time of one thread, the median over runs; memory is the
weights, and what a prefill adds at its peak.
"""


class Estimate(NamedTuple):
    """A mean over seeds; ``half`` is half of its 95 % interval, infinite for a single seed."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if math.isfinite(self.half) else "")


def estimate(values: Sequence[float]) -> Estimate:
    if len(values) < 2:
        return Estimate(statistics.mean(values), math.inf)
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return Estimate(statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)))


def read_records(
    task: str, tables: Sequence[str], folder: Path = RECORDS, *, partial: bool = False
) -> dict[str, list[Record]]:
    """The records of each row, by seed.

    Raises:
        ValueError: records that are missing, all of them named, unless ``partial``.
    """
    rows = dict.fromkeys(line.row for table in tables for line in TABLES[table].lines)
    paths = {(row, seed): record_path(task, row, seed, folder) for row in rows for seed in SEEDS}
    missing = [f"{row} seed {seed}" for (row, seed), path in paths.items() if not path.exists()]
    if missing and not partial:
        raise ValueError(f"tables: no record of {', '.join(missing)}; 'missing' runs them, --partial leaves them out")
    found: dict[str, list[Record]] = {row: [] for row in rows}
    for (row, _), path in paths.items():
        if path.exists():
            found[row].append(read_record(path))
    return {row: records for row, records in found.items() if records}


def write_tables(
    task: str,
    tables: Sequence[str] = tuple(TABLES),
    *,
    partial: bool = False,
    records_folder: Path = RECORDS,
    folder: Path = RESULTS,
) -> Path:
    """Writes the page and its figures, and returns the page."""
    from examples.reproduction.figures import draw_costs, draw_curves

    records = read_records(task, tables, records_folder, partial=partial)
    if not records:
        raise ValueError(f"tables: there is no record of {task} in {records_folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in tables:
        of_table = {line.row: records[line.row] for line in TABLES[name].lines if line.row in records}
        if of_table:
            draw_curves(of_table, folder / f"{task}-{name}.png")
    draw_costs(records, folder / f"{task}-cost.png")
    page = folder / f"{task}.md"
    page.write_text(_page(task, tables, records))
    return page


def _page(task: str, tables: Sequence[str], records: dict[str, list[Record]]) -> str:
    first = next(iter(records.values()))[0]
    parts = [HEADER.format(title=f"The papers' effect in small: {task}", images=first["test_images"])]
    encoder = MODELS / f"{task}-encoder" / "record.json"
    if encoder.exists():
        accuracy = read_record(encoder)["patch_accuracy"]
        parts.append(
            f"The frozen encoder alone names the digit at a patch rightly in {accuracy['seen']:.1%} of the patches of "
            f"seen digits and {accuracy['unseen']:.1%} of unseen ones.\n"
        )
    for name in tables:
        if any(line.row in records for line in TABLES[name].lines):
            parts += [*_table(TABLES[name], records), f"![learning curves]({task}-{name}.png)\n"]
    parts += ["## Accuracy and cost\n", f"![accuracy and cost]({task}-cost.png)\n"]
    every = [record for of_row in records.values() for record in of_row]
    parts += ["## Runs\n", *_runs(every)]
    return "\n".join(parts) + "\n"


def _table(table: Table, records: dict[str, list[Record]]) -> list[str]:
    head = ["row", "seeds", "unseen digits", "seen digits", "gain", "over", "paper, points", "decided", "last quarter"]
    head += ["trained parameters", "MFLOP", "TTFT, ms", "weights + prefill, MB"]
    lines = [_cells(line, records) for line in table.lines if line.row in records]
    return [f"## {table.title} ({table.paper})\n", _line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *lines, ""]


def _cells(line: Line, records: dict[str, list[Record]]) -> str:
    of_row = records[line.row]
    cost = of_row[0]["cost"]
    gain = None if line.over is None else gain_over(of_row, records.get(line.over, []))
    memory = cost["prefill_bytes"]
    return _line(
        [
            f"{line.row}: {ROWS[line.row].what}",
            str(len(of_row)),
            str(estimate([record["accuracy"]["unseen"] for record in of_row])),
            str(estimate([record["accuracy"]["seen"] for record in of_row])),
            "" if gain is None else f"{gain.mean:+.3f}" + (f" ± {gain.half:.3f}" if math.isfinite(gain.half) else ""),
            line.over or "",
            "" if line.paper is None else f"{line.paper:+.1f}",
            "" if gain is None else decided(gain, line.paper),
            f"{statistics.mean(last_quarter(record) for record in of_row):+.3f}",
            f"{cost['trained_parameters']:,}",
            f"{cost['prefill_flops'] / 1e6:.0f}",
            f"{statistics.median(record['cost']['ttft']['median_ms'] for record in of_row):.1f}",
            f"{cost['weight_bytes'] / 1e6:.1f}" + (f" + {memory / 1e6:.1f}" if isinstance(memory, int) else ""),
        ]
    )


def gain_over(records: Sequence[Record], base: Sequence[Record]) -> Estimate | None:
    """Of the seeds that both have; None where there is none."""
    of_base = {record["seed"]: record["accuracy"]["unseen"] for record in base}
    gains = [r["accuracy"]["unseen"] - of_base[r["seed"]] for r in records if r["seed"] in of_base]
    return estimate(gains) if gains else None


def decided(gain: Estimate, paper: float | None) -> str:
    """What the interval supports, in a word or two."""
    if abs(gain.mean) <= gain.half:
        return "no"
    if not paper:  # the paper has no such comparison, or no difference
        return "yes" if paper is None else "yes, unlike the paper"
    return "yes, as the paper" if (gain.mean > 0) == (paper > 0) else "yes, against the paper"


def last_quarter(record: Record) -> float:
    """What the last quarter of the steps added to the accuracy on unseen digits."""
    curve = record["curve"]
    steps = record["recipe"]["steps"]
    before = [point for point in curve if point["step"] <= 0.75 * steps] or curve[:1]
    return float(curve[-1]["unseen"] - before[-1]["unseen"])


def _runs(records: Sequence[Record]) -> list[str]:
    lines = [_line(["command", "device", "date", "steps", "processor hours", "hours"]), _line(["---"] * 6)]
    for record in records:
        hours = [f"{record[name] / 3600:.2f}" for name in ("processor_seconds", "wall_seconds")]
        cells = [f"`{record['command']}`", record["device"], record["date"][:10], str(record["recipe"]["steps"])]
        lines.append(_line([*cells, *hours]))
    versions = {f"{name} {version}" for record in records for name, version in record["versions"].items()}
    return [*lines, "", f"Versions: {', '.join(sorted(versions))}."]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
