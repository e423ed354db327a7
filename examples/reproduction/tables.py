"""Tables and figures of a task, made of its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from examples.reproduction.cost import image_tokens
from examples.reproduction.encoder import encoder_folder
from examples.reproduction.estimates import Estimate, decided, estimate
from examples.reproduction.records import RECORDS, RESULTS, Record, read_record, record_path
from examples.reproduction.rows import ROWS, SEEDS, TABLES, Line, Table
from examples.reproduction.task import Task
from examples.reproduction.tasks import find_task
from examples.reproduction.times import read_times

HEADER = """# {title}

Made from the records beside this page; `examples/reproduction/README.md` says what was trained and how:

    {command}

Accuracy is the share of {unit}s that are right in greedy answers to {images} questions a run, on what the training saw
of and on what it did not; who does not look at the image gets {guess:.3f}. It is a mean over seeds with its 95 %
interval (Student's t); a gain is taken seed by seed, on what is unseen. **decided** says whether a gain's interval
leaves zero out, and where the paper has the comparison, whether with the paper's sign; one seed has no interval and
decides nothing. The paper's figures are of other models and benchmarks. *last quarter* is what the last quarter of the
steps added to the learning curve; a row without one was not trained. *tokens* are those of an image, the mean over the
decoder's layers. The arithmetic is that of one prefill; memory is the weights, and what a prefill adds at its peak.
A dash is a figure that there is not; *missing* is a run without a record.
"""


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
    _check_comparable(task, [record for records in found.values() for record in records])
    return {row: records for row, records in found.items() if records}


def _check_comparable(task: str, records: Sequence[Record]) -> None:
    for name in ("recipe", "encoder_sha256", "test_images"):
        for record in records[1:]:
            if record[name] != records[0][name]:
                one, other = (f"{task}-{it['row']}-{it['seed']}" for it in (records[0], record))
                raise ValueError(
                    f"tables: {one} has {name} {records[0][name]}, and {other} {record[name]}; run one of them again"
                )


def write_tables(
    task: str,
    tables: Sequence[str] | None = None,
    *,
    partial: bool = False,
    records_folder: Path = RECORDS,
    folder: Path = RESULTS,
) -> Path:
    """Writes the page and its figures, of all tables of the task if none are named, and returns the page."""
    from examples.reproduction.figures import draw_costs, draw_curves, draw_ratio

    found = find_task(task)
    named = "".join(f" --table {name}" for name in tables or ())
    command = f"python -m examples.reproduction tables --task {task}{named}" + " --partial" * partial
    tables = tables or found.tables
    records = read_records(task, tables, records_folder, partial=partial)
    if not records:
        raise ValueError(f"tables: there is no record of {task} in {records_folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in tables:
        of_table = {line.row: records[line.row] for line in TABLES[name].lines if line.row in records}
        if of_table:
            draw_curves(found, of_table, folder / f"{task}-{name}.png")
            if name == "ratio":
                draw_ratio(found, of_table, folder / f"{task}-tokens.png")
    draw_costs(found, records, folder / f"{task}-cost.png")
    page = folder / f"{task}.md"
    page.write_text(_page(found, tables, records, read_times(task, records_folder), command))
    return page


def _page(
    task: Task, tables: Sequence[str], records: dict[str, list[Record]], times: Record | None, command: str
) -> str:
    first = next(iter(records.values()))[0]
    header = {"command": command, "unit": task.unit, "images": first["test_images"], "guess": task.guess}
    parts = [HEADER.format(title=f"The papers' effect in small: {task.name}", **header), *_encoder(task)]
    parts += [] if times is None else [_of_times(times)]
    for name in tables:
        table = TABLES[name]
        parts += _table(task, table, records, times)
        if any(line.row in records for line in table.lines):
            parts.append(f"![learning curves]({task.name}-{name}.png)\n")
            if name == "ratio":
                parts.append(f"![accuracy and tokens]({task.name}-tokens.png)\n")
    parts += ["## Accuracy and cost\n", f"![accuracy and cost]({task.name}-cost.png)\n"]
    every = [record for of_row in records.values() for record in of_row]
    parts += ["## Runs\n", *_runs(every)]
    return "\n".join(parts) + "\n"


def _encoder(task: Task) -> list[str]:
    """What its own record says of the frozen encoder."""
    path = encoder_folder(task) / "record.json"
    if not path.exists():
        return []
    accuracy = read_record(path)["patch_accuracy"]
    return [
        "The frozen encoder alone names what a patch shows rightly in "
        f"{accuracy['seen']:.1%} of the patches of seen images and {accuracy['unseen']:.1%} of unseen ones.\n"
    ]


def _table(task: Task, table: Table, records: dict[str, list[Record]], times: Record | None) -> list[str]:
    head = [
        "row",
        "unseen, by seed",
        "unseen",
        "seen",
        "gain",
        "over",
        "paper, points",
        "decided",
        "last quarter",
        "tokens",
    ]
    head += ["trained parameters", "MFLOP", "TTFT, ms", "over `pool`", "weights + prefill, MB"]
    lines = [_cells(task, line, records, times, len(head)) for line in table.lines]
    note = [table.note + "\n"] if table.note else []
    ruler = _line(["---"] + ["---:"] * (len(head) - 1))
    return [f"## {table.title} ({table.paper})\n", *note, _line(head), ruler, *lines, ""]


def _cells(task: Task, line: Line, records: dict[str, list[Record]], times: Record | None, columns: int) -> str:
    title = f"{line.row}: {ROWS[line.row].what}"
    if line.row not in records:
        return _line([title, *["missing"] * 3, *["–"] * (columns - 4)])
    of_row = records[line.row]
    cost = of_row[0]["cost"]
    gain = None if line.over is None else gain_over(of_row, records.get(line.over, []))
    without = "–" if line.over is None else "missing"
    added, memory = last_quarter(of_row), cost["prefill_bytes"]
    return _line(
        [
            title,
            ", ".join(f"{record['accuracy']['unseen']:.3f}" for record in of_row),
            str(estimate([record["accuracy"]["unseen"] for record in of_row])),
            str(estimate([record["accuracy"]["seen"] for record in of_row])),
            without if gain is None else f"{gain.mean:+.3f}{gain.spread}",
            line.over or "–",
            "–" if line.paper is None else f"{line.paper:+.1f}",
            without if gain is None else decided(gain, line.paper),
            "–" if added is None else f"{added:+.3f}",
            f"{statistics.mean(image_tokens(task, ROWS[line.row])):.0f}",
            "–" if ROWS[line.row].pruning else f"{cost['trained_parameters']:,}",
            f"{cost['prefill_flops'] / 1e6:.0f}",
            *_times(times, line.row),
            f"{cost['weight_bytes'] / 1e6:.1f} + " + (f"{memory / 1e6:.1f}" if isinstance(memory, int) else "–"),
        ]
    )


def _of_times(times: Record) -> str:
    return (
        f"TTFT is the median of {times['rounds']} rounds in which each row took its turn, by `{times['command']}` "
        f"({times['device']}, {times['date'][:10]}); *over `pool`* is its ratio to that of `pool` in the same round, "
        "with the middle 80 %.\n"
    )


def _times(times: Record | None, row: str) -> list[str]:
    if times is None or row not in times["ratio"]:
        return ["–", "–"]
    ratio = times["ratio"][row]
    return [f"{times['milliseconds'][row]['median']:.1f}", "{median:.2f} ({low:.2f}-{high:.2f})".format(**ratio)]


def gain_over(records: Sequence[Record], base: Sequence[Record]) -> Estimate | None:
    """Of the seeds that both have; None where there is none."""
    of_base = {record["seed"]: record["accuracy"]["unseen"] for record in base}
    gains = [r["accuracy"]["unseen"] - of_base[r["seed"]] for r in records if r["seed"] in of_base]
    return estimate(gains) if gains else None


def last_quarter(records: Sequence[Record]) -> float | None:
    """What the last quarter of the steps added to the accuracy on unseen images, the mean; None without a curve."""
    added: list[float] = []
    for record in records:
        curve, steps = record["curve"], record["recipe"]["steps"]
        if not curve:
            return None
        before = [point for point in curve if point["step"] <= 0.75 * steps] or curve[:1]
        added.append(curve[-1]["unseen"] - before[-1]["unseen"])
    return statistics.mean(added)


def _runs(records: Sequence[Record]) -> list[str]:
    lines = [_line(["command", "device", "date", "steps", "processor hours", "hours"]), _line(["---"] * 6)]
    for record in records:
        hours = [f"{record[name] / 3600:.2f}" for name in ("processor_seconds", "wall_seconds")]
        steps = str(record["recipe"]["steps"]) if record["curve"] else "not trained"
        cells = [f"`{record['command']}`", record["device"], record["date"][:10], steps]
        lines.append(_line([*cells, *hours]))
    versions = {f"{name} {version}" for record in records for name, version in record["versions"].items()}
    return [*lines, "", f"Versions: {', '.join(sorted(versions))}."]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
