"""The tables of ``examples/reproduction``: what they say of records, and of those that are missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from examples.reproduction import records, tables, training

RECIPE = training.Recipe(steps=4, batch=2, warmup_steps=1, save_steps=2, curve_steps=2, curve_images=3)


def write_record(folder: Path, row: str, seed: int, unseen: float) -> None:
    spent = {"processor_seconds": 3600.0, "wall_seconds": 7200.0}
    curve = [{"step": step, "seen": 0.5, "unseen": unseen - (step == 3) / 8} for step in (3, 4)]
    measured = {"trained_parameters": 10, "prefill_flops": 2_000_000, "weight_bytes": 10**6, "prefill_bytes": "unknown"}
    content: dict[str, Any] = {
        "task": "digits", "row": row, "seed": seed, "command": f"run {row} {seed}", "test_images": 3,
        "accuracy": {"seen": unseen + 0.1, "unseen": unseen}, "curve": curve, "recipe": {"steps": 4},
        "cost": measured | {"ttft": {"median_ms": 3.0}}, "device": "a processor", "date": "2000-01-01T00:00:00",
        "versions": {"torch": "2"},
    }  # fmt: skip
    records.write_json(records.record_path("digits", row, seed, folder), content | spent)


def write_insertion(folder: Path) -> None:
    for row, values in {"full": (0.5, 0.6, 0.7), "after-1": (0.4, 0.5, 0.6), "after-1-4-7": (0.4, 0.7, 0.6)}.items():
        for seed, unseen in enumerate(values):
            write_record(folder, row, seed, unseen)


def test_tables_say_of_each_gain_what_its_interval_supports(tmp_path: Path) -> None:
    write_insertion(tmp_path / "records")
    page = tables.write_tables(
        "digits", ["insertion"], records_folder=tmp_path / "records", folder=tmp_path
    ).read_text()
    lines = {line.split(":")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "0.600 ± 0.248" in lines["full"]
    assert "-0.100 ± 0.000 | full | -0.4 | yes, as the paper" in lines["after-1"]
    assert "-0.033 ± " in lines["after-1-4-7"]
    assert "| no |" in lines["after-1-4-7"]
    assert "+0.125" in lines["full"]  # the last quarter of its steps
    for name in ("digits-insertion.png", "digits-cost.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_record_that_is_missing_is_named(tmp_path: Path) -> None:
    write_insertion(tmp_path)
    records.record_path("digits", "after-1", 2, tmp_path).unlink()
    with pytest.raises(ValueError, match="no record of after-1 seed 2; "):
        tables.read_records("digits", ["insertion"], tmp_path)
    partial = tables.read_records("digits", ["insertion"], tmp_path, partial=True)
    assert [record["seed"] for record in partial["after-1"]] == [0, 1]


@pytest.mark.parametrize(
    ("gain", "paper", "words"),
    [
        (tables.Estimate(0.1, 0.2), 0.3, "no"),
        (tables.Estimate(0.1, math.inf), None, "no"),
        (tables.Estimate(0.1, 0.05), 0.3, "yes, as the paper"),
        (tables.Estimate(-0.1, 0.05), 0.3, "yes, against the paper"),
        (tables.Estimate(-0.1, 0.05), 0.0, "yes, unlike the paper"),
        (tables.Estimate(-0.1, 0.05), None, "yes"),
    ],
)
def test_a_gain_is_decided_where_its_interval_leaves_zero_out(
    gain: tables.Estimate, paper: float | None, words: str
) -> None:
    assert tables.decided(gain, paper) == words


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        records.write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
