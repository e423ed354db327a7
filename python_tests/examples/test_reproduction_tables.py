"""The tables of ``examples/reproduction``: what they say of records, and of those that are missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from examples.reproduction import estimates, records, tables, times
from examples.reproduction.rows import TABLES
from examples.reproduction.tasks import find_task


def write_record(
    folder: Path, row: str, seed: int, unseen: float, *, task: str = "digits", trained: bool = True
) -> None:
    spent = {"processor_seconds": 3600.0, "wall_seconds": 7200.0}
    curve = [{"step": step, "seen": 0.5, "unseen": unseen - (step == 3) / 8} for step in (3, 4)]
    measured = {"trained_parameters": 10, "prefill_flops": 2_000_000, "weight_bytes": 10**6, "prefill_bytes": "unknown"}
    content: dict[str, Any] = {
        "task": task, "row": row, "seed": seed, "command": f"run {row} {seed}", "test_images": 3,
        "accuracy": {"seen": unseen + 0.1, "unseen": unseen}, "curve": curve if trained else [], "recipe": {"steps": 4},
        "encoder_sha256": "e",
        "cost": measured, "device": "a processor", "date": "2000-01-01T00:00:00", "versions": {"torch": "2"},
    }  # fmt: skip
    records.write_json(records.record_path(task, row, seed, folder), content | spent)


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
    assert "| 0.500, 0.600, 0.700 | 0.600 ± 0.248 | " in lines["full"]
    assert "-0.100 ± 0.000 | full | -0.4 | yes, as the paper" in lines["after-1"]
    assert "-0.033 ± " in lines["after-1-4-7"]
    assert "| no |" in lines["after-1-4-7"]
    assert "+0.125" in lines["full"]  # the last quarter of its steps
    for name in ("digits-insertion.png", "digits-cost.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("field", ["recipe", "encoder_sha256", "test_images"])
def test_records_that_cannot_be_compared_are_refused(field: str, tmp_path: Path) -> None:
    write_insertion(tmp_path)
    path = records.record_path("digits", "after-1", 2, tmp_path)
    records.write_json(path, records.read_record(path) | {field: "another"})
    with pytest.raises(ValueError, match=f"digits-full-0 has {field} .*, and digits-after-1-2 another; run one of"):
        tables.write_tables("digits", ["insertion"], records_folder=tmp_path, folder=tmp_path)


def test_times_stand_beside_their_ratio_where_they_were_measured(tmp_path: Path) -> None:
    write_insertion(tmp_path)
    assert (
        "TTFT is the median"
        not in tables.write_tables("digits", ["insertion"], records_folder=tmp_path, folder=tmp_path).read_text()
    )
    spread = {"low": 1.25, "median": 1.5, "high": 1.75}
    measured = {"milliseconds": {"full": spread | {"median": 30.0}}, "ratio": {"full": spread}}
    about = {"rounds": 7, "command": "times", "device": "a processor", "date": "2000-01-01T00:00:00"}
    records.write_json(times.times_path("digits", tmp_path), measured | about)
    page = tables.write_tables("digits", ["insertion"], records_folder=tmp_path, folder=tmp_path).read_text()
    assert "the median of 7 rounds" in page
    lines = {line.split(":")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "| 2 | 30.0 | 1.50 (1.25-1.75) | 1.0 + " in lines["full"]
    assert "| 2 | – | – | 1.0 + " in lines["after-1"]


def test_every_row_of_a_task_is_timed_in_the_same_rounds(tmp_path: Path) -> None:
    record = times.measure_times("charts", rounds=1, folder=tmp_path)
    rows = {line.row for table in find_task("charts").tables for line in TABLES[table].lines}
    assert rows == set(record["milliseconds"]) == set(record["ratio"])
    assert set(record["ratio"]["pool"].values()) == {1.0}
    assert min(spread["low"] for spread in record["milliseconds"].values()) > 0
    assert times.read_times("charts", tmp_path) == record


def test_a_record_that_is_missing_is_named(tmp_path: Path) -> None:
    write_insertion(tmp_path)
    records.record_path("digits", "after-1", 2, tmp_path).unlink()
    with pytest.raises(ValueError, match="no record of after-1 seed 2; "):
        tables.read_records("digits", ["insertion"], tmp_path)
    partial = tables.read_records("digits", ["insertion"], tmp_path, partial=True)
    assert [record["seed"] for record in partial["after-1"]] == [0, 1]


def test_a_table_says_what_is_missing_and_makes_nothing_up(tmp_path: Path) -> None:
    write_record(tmp_path / "records", "full", 0, 0.5)
    write_record(tmp_path / "records", "full-2", 0, 0.75)
    page = tables.write_tables(
        "digits",
        ["insertion", "ratio", "projectors"],
        partial=True,
        records_folder=tmp_path / "records",
        folder=tmp_path,
    ).read_text()
    lines = {line.split(":")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert lines["after-1"] == "| after-1: after layer 1" + " | missing" * 3 + " | –" * 11 + " |"
    assert "| 0.750 | 0.850 | missing | pool-2 | +2.4 | missing | " in lines["full-2"]  # one seed has no interval
    assert page.count("missing") > 40
    assert "digits-tokens.png" in page
    assert (tmp_path / "digits-tokens.png").read_bytes().startswith(b"\x89PNG")
    assert "nan" not in page
    assert "inf" not in page


def test_a_table_says_which_rows_were_not_trained(tmp_path: Path) -> None:
    for seed, row in enumerate(("full", "fastv")):
        write_record(tmp_path / "records", row, seed, 0.5, trained=row != "fastv")
    page = tables.write_tables(
        "digits", ["methods"], partial=True, records_folder=tmp_path / "records", folder=tmp_path
    ).read_text()
    lines = [line for line in page.splitlines() if "fastv" in line or "run full" in line]
    assert " | missing | full | -5.7 | missing | – | 48 | – | " in lines[0]  # of no seed are there both; 48 tokens
    assert "| 4 | 1.00 | 2.00 |" in lines[1]
    assert "| not trained | " in lines[2]


def test_a_page_names_its_task_and_who_does_not_look(tmp_path: Path) -> None:
    write_record(tmp_path / "records", "pool", 0, 0.5, task="photo")
    page = tables.write_tables("photo", partial=True, records_folder=tmp_path / "records", folder=tmp_path).read_text()
    assert "the share of photographs that are right" in page
    assert "gets 0.100" in page
    assert page.count("\n## ") == 3  # the task's one table, cost and runs


def test_an_interval_is_that_of_student() -> None:
    three = estimates.estimate([0.1, 0.2, 0.3])
    assert str(three) == "0.200 ± 0.248"  # 4.303 deviations of a mean of three
    assert str(estimates.estimate([0.1])) == "0.100"


@pytest.mark.parametrize(
    ("gain", "paper", "words"),
    [
        (estimates.Estimate(0.1, 0.2), 0.3, "no"),
        (estimates.Estimate(0.1, math.inf), None, "one seed"),
        (estimates.Estimate(0.1, 0.05), 0.3, "yes, as the paper"),
        (estimates.Estimate(-0.1, 0.05), 0.3, "yes, against the paper"),
        (estimates.Estimate(-0.1, 0.05), 0.0, "yes, unlike the paper"),
        (estimates.Estimate(-0.1, 0.05), None, "yes"),
    ],
)
def test_a_gain_is_decided_where_its_interval_leaves_zero_out(
    gain: estimates.Estimate, paper: float | None, words: str
) -> None:
    assert estimates.decided(gain, paper) == words


def percent(share: float) -> str:
    """As docs/results/digits.md rounds it, to three places: 0.8015, say, which no float is, is 0.801 there."""
    return f"{100 * float(f'{share:.3f}'):.1f}"


def test_the_readme_s_digits_are_those_of_the_records() -> None:
    found = tables.read_records("digits", ["effect"], partial=True)
    readme = " ".join((records.ROOT / "README.md").read_text().split())
    cells = []
    for row in ("pool", "control", "local", "full"):
        unseen = estimates.estimate([record["accuracy"]["unseen"] for record in found[row]])
        cells.append(f"{percent(unseen.mean)} ± {percent(unseen.half)} %")
    assert f"| {' | '.join(cells)} |" in readme
    found |= tables.read_records("digits", ["components", "interaction"], partial=True)
    *others, last = [percent(record["accuracy"]["unseen"]) for record in found["mlp"]]
    assert f"seeds reach {', '.join(others)} and {last} %" in readme
    for row, over, decided, sentence in (
        ("full", "pool", "yes", "Vision Remember gains {} points over pooling"),
        ("full", "control", "yes", "and {} over the same parameters without features"),
        ("full", "global", "yes", "over global attention in place of local {},"),
        ("multi-level", "local", "yes", "three levels of features {} over one"),
        ("deformable", "full", "no", "ends above it here, by {}: not decided"),
    ):
        gain = tables.gain_over(found[row], found[over])
        assert gain is not None
        assert estimates.decided(gain, None) == decided
        assert gain.mean > 0
        assert sentence.format(f"{percent(gain.mean)} ± {percent(gain.half)}") in readme


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        records.write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
