"""Every cell of the coverage matrix, for the backends that this process can run, and the page that shows it."""

from __future__ import annotations

import json

import pytest

from python_tests._matrix import Cell, cells, check, check_reference, reference_cells
from python_tests.write_coverage import DOCS, render


@pytest.mark.parametrize("cell", [*cells()], ids="-".join)
def test_the_cpu_backend_obeys_the_error_rule(cell: Cell) -> None:
    check(cell, "cpu")


@pytest.mark.parametrize("cell", [*reference_cells()], ids="-".join)
def test_the_reference_equals_loops_over_windows(cell: Cell) -> None:
    check_reference(cell)


def test_the_page_shows_what_is_tested_and_nothing_else() -> None:
    coverage = json.loads((DOCS / "coverage.json").read_text())
    tested = {"-".join(cell) for cell in [*cells(), *reference_cells()]}
    assert set().union(*coverage.values()) <= tested
    assert set(coverage["cpu"]) == {"-".join(cell) for cell in cells()}
    assert (DOCS / "coverage.md").read_text() == render(coverage)
