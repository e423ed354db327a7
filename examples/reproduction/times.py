"""How long the models of a task take to the first token: new ones, for no time depends on what was learned."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.reproduction.cost import prefill
from examples.reproduction.encoder import encoder_folder
from examples.reproduction.model import build_model
from examples.reproduction.pruning import prune
from examples.reproduction.records import RECORDS, Record, environment, read_record, write_json
from examples.reproduction.rows import ROWS, TABLES
from examples.reproduction.tasks import find_task
from vr_kernels.cli.measure.timing import Spread, paired_seconds, ratios

ROUNDS = 50
YARDSTICK = "pool"


def times_path(task: str, folder: Path = RECORDS) -> Path:
    return folder / f"{task}-times.json"


def measure_times(task: str, *, rounds: int = ROUNDS, folder: Path = RECORDS) -> Record:
    """Times every row of the task's tables once a round, and records milliseconds and their ratio to ``pool``'s."""
    found = find_task(task)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = {}
    for row in dict.fromkeys(line.row for table in found.tables for line in TABLES[table].lines):
        pruning = ROWS[row].pruning
        model = build_model(found, ROWS[row], 0, encoder_folder(found)).eval().to(device)
        runs[row] = prefill(found, ROWS[row], model if pruning is None else prune(model, pruning))
    seconds = paired_seconds(runs, device, rounds, lambda done: None)
    record = {
        "task": task,
        "command": f"python -m examples.reproduction times --task {task}",
        "rounds": len(seconds[YARDSTICK]),
        "milliseconds": {row: Spread.of([1e3 * x for x in times])._asdict() for row, times in seconds.items()},
        "ratio": {row: Spread.of(ratios(times, seconds[YARDSTICK]))._asdict() for row, times in seconds.items()},
        **environment(device),
    }
    write_json(times_path(task, folder), record)
    return record


def read_times(task: str, folder: Path = RECORDS) -> Record | None:
    path = times_path(task, folder)
    return read_record(path) if path.exists() else None
