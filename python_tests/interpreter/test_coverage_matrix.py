"""Every cell of the coverage matrix, for Triton's kernels in its interpreter, and what the page says of them."""

from __future__ import annotations

import json

import pytest

from python_tests._matrix import Cell, cells_of, check, is_contained
from python_tests.write_coverage import DOCS

BACKENDS = ["triton", "triton_fused"]

RUNS = [(backend, cell) for backend in BACKENDS for cell in cells_of(backend) if not is_contained(cell)]


@pytest.mark.parametrize(("backend", "cell"), [pytest.param(*run, id="-".join([run[0], *run[1]])) for run in RUNS])
def test_triton_obeys_the_error_rule(backend: str, cell: Cell) -> None:
    check(cell, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_shows_these_cells(backend: str) -> None:
    coverage = json.loads((DOCS / "coverage.json").read_text())
    assert set(coverage[backend]) == {"-".join(cell) for cell in cells_of(backend)}
