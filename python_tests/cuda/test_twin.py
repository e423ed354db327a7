"""The CUDA kernels on the CPU's twin of a GPU: tiles, tails, softmax, gradients and the inverse index."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests import _matrix
from python_tests._cases import DTYPES, Call, attention_call, cross_attention_call, floating_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, WINDOWED, Subject
from python_tests.cuda import _shapes
from python_tests.cuda._twin import SANITIZED, SHARED_MEMORY
from python_tests.write_coverage import DOCS, TWINS

pytestmark = pytest.mark.usefixtures("_twin_backend")

DRAW = {"local_attention": _shapes.draw_attention, "local_cross_attention": _shapes.draw_cross_attention}
# Of each operator and dtype: nine hundred together. The fused products have their own (test_products.py).
SHAPES = {"twin": 8 if SANITIZED else 140, "twin_fused": 4 if SANITIZED else 24}
KEY_BIAS = ["d key_bias"]  # exactly zero, of which stock PyTorch keeps what rounding leaves

RUNS = [(subject, "twin") for subject in WINDOWED] + [(LOCAL_CROSS_ATTENTION, "twin_fused")]
over_runs = pytest.mark.parametrize(
    ("subject", "backend"), [pytest.param(*run, id=f"{run[0].name}-{run[1]}") for run in RUNS]
)
not_sanitized = pytest.mark.skipif(SANITIZED, reason="takes minutes under the sanitizers, which other tests are for")


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_runs
def test_random_shapes_strides_and_rings_obey_the_error_rule(
    twin: Any, subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    shapes = SHAPES[backend]
    seeds = iter(range(4 * shapes))

    def run(**call: Any) -> Any:
        seed = next(seeds)
        twin.set_order(seed)
        twin.set_shared_memory(SHARED_MEMORY[seed % 3])
        return subject.run(backend)(**_shapes.strided(call, seed))

    reference = subject.run("reference")
    draw = DRAW[subject.name]
    assert_obeys_the_error_rule(run, reference, reference, lambda seed: draw(seed, dtype), draws=shapes, skip=KEY_BIAS)


@pytest.mark.parametrize(("column", "backend"), TWINS.items())
def test_the_coverage_page_shows_the_matrix_of_the_twin(column: str, backend: str) -> None:
    coverage = json.loads((DOCS / "coverage.json").read_text())
    assert set(coverage[column]) == {"-".join(cell) for cell in _matrix.cells_of(backend)}


@not_sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", _matrix.DIRECTIONS)
@over_runs
def test_the_coverage_matrix_holds(subject: Subject, backend: str, direction: str, dtype: torch.dtype) -> None:
    cells = [cell for cell in _matrix.cells_of(backend) if cell.subject is subject]
    cells = [cell for cell in cells if (cell.direction, _matrix.DTYPES[cell.dtype]) == (direction, dtype)]
    assert cells
    for cell in cells:
        _matrix.check(cell, backend)


EVERYTHING: list[tuple[Subject, Call]] = [
    (LOCAL_ATTENTION, attention_call(indexed=True, heads=34, kv_heads=2, width=136, bias="shared", saliency=True)),
    (LOCAL_ATTENTION, attention_call(dtype=torch.bfloat16, width=(300, 65, 8), kv_heads=1, saliency=True)),
    (
        LOCAL_CROSS_ATTENTION,
        cross_attention_call(heads=18, widths=(130, 64, 9), norm="level", saliency="value", bias="per window"),
    ),
    (
        LOCAL_CROSS_ATTENTION,
        cross_attention_call(dtype=torch.bfloat16, indexed=True, heads=18, widths=(130, 64, 300), norm="all"),
    ),
]


@not_sanitized
@pytest.mark.parametrize(("subject", "call"), EVERYTHING)
def test_no_bit_depends_on_the_order_of_threads_and_blocks(twin: Any, subject: Subject, call: Call) -> None:
    function = subject.run("twin")
    cotangents = random_cotangents(function, call)

    def results(order: int) -> dict[str, torch.Tensor]:
        twin.set_order(order)
        return evaluate(function, call, cotangents)

    first = results(0)
    for order in range(1, 12):
        for name, tensor in results(order).items():
            assert torch.equal(tensor, first[name]), name


@not_sanitized
@pytest.mark.parametrize(("subject", "call"), [EVERYTHING[0], EVERYTHING[-1]])  # of two tiles of heads
def test_each_gradient_alone_obeys_the_error_rule(twin: Any, subject: Subject, call: Call) -> None:
    reference = subject.run("reference")
    for order, wanted in enumerate(floating_tensors(call)):
        twin.set_order(order)
        assert_obeys_the_error_rule(
            subject.run("twin"), reference, reference, lambda _: call, draws=1, wanted=[wanted], skip=KEY_BIAS
        )


@not_sanitized
@pytest.mark.parametrize(("subject", "call"), EVERYTHING)
def test_results_are_the_same_however_much_shared_memory_there_is(twin: Any, subject: Subject, call: Call) -> None:
    function = subject.run("twin")
    cotangents = random_cotangents(function, call)
    results = []
    for size in SHARED_MEMORY:
        twin.set_shared_memory(size)
        results.append(evaluate(function, call, cotangents))
    for other in results[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, results[0][name]), name


@not_sanitized
@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "twin"), (torch.bfloat16, "twin"), (torch.bfloat16, "twin_fused")], ids=str
)
def test_the_papers_shape_obeys_the_error_rule(dtype: torch.dtype, backend: str) -> None:
    # v2's window of 3x3 and three levels of 1024, for one row of windows and 24 heads.
    assert_obeys_the_error_rule(
        LOCAL_CROSS_ATTENTION.run(backend),
        LOCAL_CROSS_ATTENTION.run("reference"),
        LOCAL_CROSS_ATTENTION.run("reference"),
        lambda seed: cross_attention_call(
            seed, dtype=dtype, batch=1, windows=(1, 2), window=(3, 3), heads=24, head_dim=128, widths=(1024,) * 3
        ),
        draws=1,
    )


@pytest.mark.parametrize("slots", [1, 8, 9, 16, 17, 32, 33, 63, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_padding_of_the_slots_obeys_the_error_rule(slots: int, dtype: torch.dtype) -> None:
    LOCAL_ATTENTION.assert_obeys_the_error_rule(
        "twin",
        lambda seed: attention_call(seed, dtype=dtype, batch=1, window=(1, slots), width=40, bias="shared"),
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("norm", [None, "level"])
def test_the_largest_block_fits_the_smallest_device(twin: Any, norm: str | None) -> None:
    twin.set_shared_memory(0)  # the twin ends the process where a block then takes more than any device has
    sizes = {"batch": 1, "windows": (1, 1), "window": (8, 8)}
    attention = attention_call(**sizes, kv_heads=1, width=(65,) * 8, value_width=200)
    cross = cross_attention_call(**sizes, widths=(65,) * 8, norm=norm)
    for subject, call in ((LOCAL_ATTENTION, attention), (LOCAL_CROSS_ATTENTION, cross)):
        evaluate(subject.run("twin"), call, random_cotangents(subject.run("reference"), call))


def test_windows_of_no_slot_give_zeros() -> None:
    call = attention_call(indexed=True, window=(1, 1))
    call["window_index"] = call["window_index"][:, :0]
    out, lse, attention = LOCAL_ATTENTION.run("twin")(**call)
    assert torch.equal(out, torch.zeros_like(call["query"]))
    assert torch.equal(lse, torch.full(call["query"].shape[:2], -torch.inf))
    assert attention.shape[-1] == 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_feature_spoils_the_windows_that_read_it_and_no_other(dtype: torch.dtype, poison: float) -> None:
    call = attention_call(dtype=dtype, batch=1, windows=(2, 2), window=(2, 2), heads=3, kv_heads=1, width=24)
    call["key"][0, 0, 3] = poison  # read by window (0, 1) alone
    out = vr_kernels.local_attention(**call, backend="twin")
    assert out[0, 0, 1].isnan().any(-1).all()
    out[0, 0, 1] = 0
    assert out.isfinite().all()


def test_more_levels_than_the_kernels_hold_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="9 levels; the kernels take up to 8"):
        vr_kernels.local_attention(**attention_call(kv_heads=1, width=(1,) * 9), backend="twin")
