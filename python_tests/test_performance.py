"""``bench/performance.py``: the page of a GPU's records, on records that these tests make up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.test_docs import ROOT, bench_script

DEVICE = "no GPU: made up by a test"


@pytest.fixture
def performance() -> Any:
    return bench_script("performance")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A record of this project's CPU figures with another device, and the other kinds that ``bench/gpu.sh`` writes."""
    path = ROOT / "bench/results/local_cross_attention_cpu_bfloat16_forward.json"
    record = json.loads(path.read_text())
    record["environment"]["CUDA"]["devices"] = [DEVICE]
    common = {key: record[key] for key in ("environment", "date")}
    kernel = {"name": "a|kernel", "launches": 2.0, "us": 7.0}
    contenders = {
        "ours": {"us": 21.0, "launches": 2.0, "busy, us": 7.0, "kernels": [kernel]},
        "cuda": {"failed": "RuntimeError: made up"},
    }
    of_case = {"case": "v2", "sizes": "some", "contenders": contenders}
    for name, content in {
        "gpu-forward-24-1": record,
        "gpu-launches-1": {"launches": "local_cross_attention", "batch": 1, "dtype": "bfloat16", "cases": [of_case]},
        "gpu-training-v2": {"training": "v2", "sizes": "some", "rows": [{"model": "ours", "phase": 1, "seconds": 0.5}]},
        "info": common["environment"],
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(common | content))
    return tmp_path


def test_every_contender_of_every_case_stands_on_the_page_with_its_device(performance: Any, records: Path) -> None:
    page = performance.page(records)
    record = json.loads((records / "gpu-forward-24-1.json").read_text())
    assert page.count(DEVICE) == 3
    assert performance.NOTHING not in page
    for case in record["cases"]:
        for row in case["rows"]:
            assert f"| {row['name']} | {row['seconds']['median'] * 1e6:.0f} (" in page
        assert all(remark in page for remark in case["losses"])
    assert "| ours | 21 | 2 | 7 | `a/kernel` 7 |" in page
    assert "| cuda | RuntimeError: made up |" in page
    assert "| ours | 1 | 0.5 |" in page


def test_the_rates_of_a_row_are_those_of_its_record(performance: Any, records: Path) -> None:
    page = performance.page(records)
    header = next(line for line in page.splitlines() if line.startswith("| contender | µs | "))
    record = json.loads((records / "gpu-forward-24-1.json").read_text())
    for case in record["cases"]:
        table = page.partition(f"**{case['case']['name']}**")[2]
        for row in case["rows"]:
            line = next(line for line in table.splitlines() if line.startswith(f"| {row['name']} |"))
            cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
            median = row["seconds"]["median"]
            assert float(cells["of floor"].rstrip("%")) / 100 == pytest.approx(row["of_floor"], abs=0.006)
            assert float(cells["TFLOP/s"]) * 1e12 == pytest.approx(case["operations"] / median, abs=0.06e12)
            assert float(cells["GB/s"]) * 1e9 == pytest.approx(case["bytes"] / median, abs=0.6e9)


def test_a_roofline_is_drawn_of_each_operator_s_record(performance: Any, records: Path, tmp_path: Path) -> None:
    performance.draw_rooflines(records, tmp_path / "figures")
    pictures = [path.name for path in (tmp_path / "figures").iterdir()]
    assert pictures == ["gpu-forward-24-1.png"]
    assert f"({performance.FIGURES}/gpu-forward-24-1.png)" in performance.page(records)


def test_the_page_is_made_from_the_committed_records(performance: Any) -> None:
    page = performance.page(performance.RECORDS)
    assert page == performance.PAGE.read_text()
    assert (performance.NOTHING in page) is (not list(performance.records(performance.RECORDS)))
