"""Every cell of the coverage matrix on a GPU, for the kernels written for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from python_tests._errors import assert_obeys_the_error_rule
from python_tests._matrix import Cell, cells, draw, is_contained
from python_tests.gpu._gpu import KERNELS, need, on_gpu

pytestmark = pytest.mark.gpu

RUNS = [(backend, cell) for cell in cells() if not is_contained(cell) for backend in KERNELS[cell.operator]]


@pytest.mark.parametrize(("backend", "cell"), [pytest.param(*run, id="-".join([run[0], *run[1]])) for run in RUNS])
def test_the_kernel_obeys_the_error_rule(backend: str, cell: Cell) -> None:
    need(cell.subject, backend)
    _, outputs = cell.subject.options[cell.option]

    def run(name: str) -> Callable[..., tuple[Tensor, ...]]:
        def call(**arguments: Any) -> tuple[Tensor, ...]:
            result = cell.subject.function(**arguments, **outputs, backend=name)
            return result if isinstance(result, tuple) else (result,)

        return call

    assert_obeys_the_error_rule(
        on_gpu(run(backend)),
        on_gpu(run("reference")),
        run("reference"),
        lambda seed: draw(cell, seed),
        draws=max(6, cell.subject.draws),
        wanted=[] if cell.direction == "forward" else None,
        norms=["root_mean_square"],  # of few and small tensors: the largest of a few numbers is luck
    )
