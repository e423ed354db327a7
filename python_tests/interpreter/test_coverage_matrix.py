"""Every cell of the coverage matrix, for Triton's kernels in its interpreter, and what the page says of them."""

from __future__ import annotations

import json

import pytest

from python_tests._matrix import Cell, cells, check
from python_tests.write_coverage import DOCS


# A backward cell is checked with the outputs that it differentiates: it contains the forward cell.
@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.direction == "backward"], ids="-".join)
def test_triton_obeys_the_error_rule(cell: Cell) -> None:
    check(cell, "triton")


def test_the_page_shows_these_cells() -> None:
    coverage = json.loads((DOCS / "coverage.json").read_text())
    assert set(coverage["triton"]) == {"-".join(cell) for cell in cells()}
