"""The coverage matrix: which backend is held to the error rule in which direction, form, option and dtype."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from python_tests._cases import Call, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import SUBJECTS, Subject, backends_of

DIRECTIONS = ("forward", "backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Cell(NamedTuple):
    operator: str
    direction: str
    form: str
    option: str
    dtype: str

    @property
    def subject(self) -> Subject:
        return next(subject for subject in SUBJECTS if subject.name == self.operator)


def is_contained(cell: Cell) -> bool:
    """Whether the backward cell computes a forward cell too: with the outputs that it differentiates. Not a GELU, which
    a call without gradients computes in the kernel, and one that is recorded behind it."""
    return cell.direction == "forward" and cell.option != "GELU"


def cells() -> Iterator[Cell]:
    for subject in SUBJECTS:
        axes = (DIRECTIONS, subject.forms, subject.options, DTYPES)
        yield from (Cell(subject.name, *rest) for rest in itertools.product(*axes))


def cells_of(backend: str) -> list[Cell]:
    """The cells of those operators that the backend has and can run here."""
    return [cell for cell in cells() if backend in backends_of(cell.subject)]


def reference_cells() -> Iterator[Cell]:
    """The same in float64, where the reference itself is held to explicit loops."""
    seen = dict.fromkeys(cell._replace(dtype="float64") for cell in cells())
    yield from seen


def check_reference(cell: Cell) -> None:
    subject = cell.subject
    call = map_tensors(draw(cell._replace(dtype="float32"), 0), lambda tensor: tensor.double())
    wanted = [] if cell.direction == "forward" else None
    cotangents = random_cotangents(subject.oracle, call)
    results = (evaluate(run, call, cotangents, wanted) for run in (subject.run("reference"), subject.oracle))
    for result, expected in zip(*(r.values() for r in results), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def check(cell: Cell, backend: str) -> None:
    """Raise AssertionError where the backend breaks the error rule in this cell."""
    _, outputs = cell.subject.options[cell.option]

    def run(name: str) -> Callable[..., Any]:
        return lambda **call: cell.subject.function(**call, **outputs, backend=name)

    wanted = [] if cell.direction == "forward" else None
    reference = run("reference")
    options: dict[str, Any] = {"draws": cell.subject.draws}
    if backend.startswith("triton"):
        options["draws"] = cell.subject.interpreted
        if cell.dtype == "float16":  # whose source is bfloat16's: once, and then the largest of few errors is luck
            options = {"draws": 1, "norms": ["root_mean_square"]}
    assert_obeys_the_error_rule(
        run(backend), reference, reference, lambda seed: draw(cell, seed), wanted=wanted, **options
    )


def draw(cell: Cell, seed: int) -> Call:
    arguments, _ = cell.subject.options[cell.option]
    return cell.subject.call(seed, dtype=DTYPES[cell.dtype], **(arguments | cell.subject.forms[cell.form]))
