"""The same call gives the same bits 250 times, however its tensors lie, and every number of a result is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from python_tests._errors import evaluate, random_cotangents
from python_tests._layouts import assert_strides_change_nothing, last_dimension_strided, padded_rows
from python_tests._operators import WINDOWED, Draw, Subject
from python_tests.gpu._gpu import moved, need, over_runs

pytestmark = [pytest.mark.gpu, over_runs]

REPEATS = 250


@pytest.fixture
def _deterministic() -> Iterator[None]:
    """torch's own sums deterministic, and ``torch.empty`` full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_250_repeats_are_bitwise_equal(subject: Subject, backend: str, dtype: torch.dtype, draw: Draw) -> None:
    need(subject, backend)
    if subject in WINDOWED:
        # Windows of the index share rows. The gradient of a saliency is left to torch, which sums it with atomics.
        draw = {"batch": 4, "windows": (8, 8), "window": (3, 3), "bias": "shared", **draw}
    call = moved(subject.call(dtype=dtype, **draw))
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    first = evaluate(function, call, cotangents)
    for _ in range(REPEATS):
        for name, tensor in evaluate(function, call, cotangents).items():
            assert torch.equal(tensor, first[name]), name


# Each layout is compiled for anew: those that are apart from vectors and from rows.
@pytest.mark.parametrize("layout", [last_dimension_strided, padded_rows])
def test_strides_change_nothing(
    subject: Subject, backend: str, layout: Callable[[torch.Tensor], torch.Tensor], draw: Draw
) -> None:
    need(subject, backend)
    assert_strides_change_nothing(subject.run(backend), moved(subject.call(**draw)), layout)


@pytest.mark.usefixtures("_deterministic")
def test_nan_in_fresh_memory_never_shows(subject: Subject, backend: str, draw: Draw) -> None:
    need(subject, backend)
    if subject in WINDOWED:
        saliency = True if subject.name == "local_attention" else "value"
        draw = {"bias": "per window", "saliency": saliency, **draw}
    call = moved(subject.call(**draw))
    function = subject.run(backend)
    result = evaluate(function, call, random_cotangents(function, call))
    for name, tensor in result.items():
        assert not tensor.isnan().any(), name
