"""Every cell of the coverage matrix, for Triton's kernels in its interpreter."""

from __future__ import annotations

import pytest

from python_tests._matrix import Cell, cells, check


# A backward cell is checked with the outputs that it differentiates: it contains the forward cell.
@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.direction == "backward"], ids="-".join)
def test_triton_obeys_the_error_rule(cell: Cell) -> None:
    check(cell, "triton")
