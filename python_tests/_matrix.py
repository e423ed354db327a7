"""The coverage matrix: which backend is held to the error rule in which direction, form, option and dtype."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import vr_kernels
from python_tests._cases import Call, attention_call, cross_attention_call, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import SUBJECTS, Subject

DIRECTIONS = ("forward", "backward")
FORMS = ("grid", "indexed", "ragged")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Each option alone: the arguments of the drawn call, and the outputs asked for.
OPTIONS: dict[str, dict[str, tuple[dict[str, Any], dict[str, bool]]]] = {
    "local_attention": {
        "plain": ({"kv_heads": 4}, {}),
        "saliency": ({"saliency": True}, {}),
        "bias": ({"bias": "per window"}, {}),
        "GQA": ({"kv_heads": 2, "value_width": 5}, {}),
        "levels": ({"width": (5, 8)}, {}),
        "lse": ({}, {"return_lse": True}),
        "weights": ({}, {"return_attention": True}),
    },
    "local_cross_attention": {
        "plain": ({}, {}),
        "saliency": ({"saliency": "value", "biases": True}, {}),
        "bias": ({"bias": "shared", "biases": True}, {}),
        "LayerNorm": ({"norm": "level"}, {}),
        "weights": ({}, {"return_attention": True}),
    },
}


class Cell(NamedTuple):
    operator: str
    direction: str
    form: str
    option: str
    dtype: str


def cells() -> Iterator[Cell]:
    for subject in SUBJECTS:
        axes = (DIRECTIONS, FORMS, OPTIONS[subject.name], DTYPES)
        yield from (Cell(subject.name, *rest) for rest in itertools.product(*axes))


def reference_cells() -> Iterator[Cell]:
    """The same in float64, where the reference itself is held to loops over windows."""
    seen = dict.fromkeys(cell._replace(dtype="float64") for cell in cells())
    yield from seen


def check_reference(cell: Cell) -> None:
    subject = next(subject for subject in SUBJECTS if subject.name == cell.operator)
    call = map_tensors(draw(subject, cell._replace(dtype="float32"), 0), lambda tensor: tensor.double())
    wanted = [] if cell.direction == "forward" else None
    cotangents = random_cotangents(subject.oracle, call)
    results = (evaluate(run, call, cotangents, wanted) for run in (subject.run("reference"), subject.oracle))
    for result, expected in zip(*(r.values() for r in results), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def check(cell: Cell, backend: str) -> None:
    """Raise AssertionError where the backend breaks the error rule in this cell."""
    subject = next(subject for subject in SUBJECTS if subject.name == cell.operator)
    _, outputs = OPTIONS[cell.operator][cell.option]

    def run(name: str) -> Callable[..., Any]:
        return lambda **call: subject.function(**call, **outputs, backend=name)

    wanted = [] if cell.direction == "forward" else None
    reference = run("reference")
    assert_obeys_the_error_rule(
        run(backend), reference, reference, lambda seed: draw(subject, cell, seed), wanted=wanted
    )


def draw(subject: Subject, cell: Cell, seed: int) -> Call:
    make = attention_call if subject.name == "local_attention" else cross_attention_call
    arguments, _ = OPTIONS[cell.operator][cell.option]
    sizes: dict[str, Any] = {"dtype": DTYPES[cell.dtype], "indexed": cell.form != "grid"}
    if cell.form == "ragged":
        sizes |= {"batch": 1, "windows": (3, 2), "window": (3, 2)}
    call = make(seed, **sizes, **arguments)
    if cell.form == "ragged":  # rows 5 = 2 + 3 + 2 with overlaps, columns 4 = 2 + 2
        call["window_index"] = vr_kernels.window_index_from_grid(5, 4, 3, 2)
    return call
