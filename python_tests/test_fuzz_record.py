"""The record of `make fuzz` that is committed: docs/reliability.md shows what it counts, and it misses no fuzzer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_tests.fuzz import record
from python_tests.fuzz._calls import TARGETS
from python_tests.fuzz._doors import DOORS

DOCS = Path(__file__).parents[1] / "docs"
RECORD = json.loads((DOCS / "reliability.json").read_text())
OUTCOMES = ("result", "refusal", "out of memory", "result of another kind", "result too large for the reference")


def rows() -> Iterator[str]:
    """Of the page's tables: calls of all functions together, files of each kind."""
    for kind in ("right calls", "spoilt calls"):
        counts = sum(map(Counter, RECORD[kind].values()), Counter[str]())
        yield row(kind, counts.total(), *(counts[outcome] for outcome in OUTCOMES))
    for door in RECORD["files"]:
        counts = Counter(RECORD["files"][door])
        yield row(f"`{door}`", counts.total(), counts["taken"], counts["refused"])


def row(name: str, *numbers: int) -> str:
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def test_the_page_shows_what_the_record_counts() -> None:
    page = (DOCS / "reliability.md").read_text()
    assert [line for line in rows() if f"{line}\n" not in page] == []
    assert f"    {RECORD['command']} FUZZ_RECORD=docs/reliability.json\n" in page


def test_the_record_has_every_fuzzer() -> None:
    functions = {target.name for target in TARGETS}
    assert functions == set(RECORD["right calls"]) == set(RECORD["spoilt calls"])
    assert set(DOORS) == set(RECORD["files"])


def test_what_each_fuzzer_adds_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"command": "make fuzz"}')
    monkeypatch.setattr(record, "PATH", str(path))
    record.add("files", "image", {"taken": 2})
    record.add("files", "text", {"refused": 3})
    record.add("right calls", "gather_tokens", Counter({"result": 1}))
    assert json.loads(path.read_text()) == {
        "command": "make fuzz",
        "files": {"image": {"taken": 2}, "text": {"refused": 3}},
        "right calls": {"gather_tokens": {"result": 1}},
    }
