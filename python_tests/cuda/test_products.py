"""The fused products on the CPU's twin of a GPU, each beside what plain PyTorch makes of projected keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from python_tests._cases import DTYPES
from python_tests._errors import VALUES, Comparison
from python_tests.cuda import _products
from python_tests.cuda._products import PRODUCTS, draw
from python_tests.cuda._twin import SANITIZED, SHARED_MEMORY, TwinFusedKernel
from vr_kernels.ops import _cuda_fused

pytestmark = pytest.mark.usefixtures("_poisoned")

SHAPES = 4 if SANITIZED else 24  # of each product and dtype: two hundred together

over_products = pytest.mark.parametrize("product", PRODUCTS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def kernel(twin: Any) -> TwinFusedKernel:
    twin.set_order(0)
    twin.set_shared_memory(100_000)
    return TwinFusedKernel(twin)


@over_dtypes
@over_products
def test_random_shapes_strides_and_rings_obey_the_error_rule(
    kernel: TwinFusedKernel, product: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = PRODUCTS[product]
    comparison = Comparison()
    for seed in range(SHAPES):
        kernel.twin.set_order(seed)
        kernel.twin.set_shared_memory(SHARED_MEMORY[seed % 3])
        # From one part of the channels to as many as there are.
        monkeypatch.setattr(_cuda_fused, "PARTIAL_BYTES", [0, 1 << 16, 1 << 30][seed // 3 % 3])
        operands = draw(seed, dtype)
        exact = plain(operands.map(lambda tensor: tensor.double()))
        comparison.add(run(kernel, _products.strided(operands, seed)), plain(operands), exact)
    comparison.check(product, VALUES, ["root_mean_square", "largest"])


@over_dtypes
@pytest.mark.parametrize("norm", ["all", "level"])
def test_statistics_survive_a_large_mean(kernel: TwinFusedKernel, norm: str, dtype: torch.dtype) -> None:
    problem = draw(3, dtype, norm=norm, widths=[40, 129, 7]).problem
    problem = replace(problem, keys=[level * 0.25 + 8 for level in problem.keys])
    levels = [level.squeeze(-2).flatten(0, -2).double() for level in problem.keys]
    groups = levels if norm == "level" else [torch.cat(levels, -1)] * 3
    statistics = kernel.statistics(problem)
    for i, group in enumerate(groups):
        torch.testing.assert_close(statistics[:, i, 0].double(), group.mean(-1), rtol=1e-6, atol=0)
        deviation = (group.var(-1, correction=0) + _products.EPS).sqrt()
        torch.testing.assert_close(1 / statistics[:, i, 1].double(), deviation, rtol=1e-5, atol=0)


@over_dtypes
@over_products
def test_no_bit_depends_on_the_order_of_threads_and_blocks(
    kernel: TwinFusedKernel, product: str, dtype: torch.dtype
) -> None:
    run, _ = PRODUCTS[product]
    operands = draw(1, dtype, count=70, slots=9, heads=3, width=40, widths=[70, 33], norm="level", indexed=True)
    first = run(kernel, operands)
    for order in range(1, 8):
        kernel.twin.set_order(order)
        assert torch.equal(run(kernel, operands), first)


@over_dtypes
@over_products
def test_results_are_the_same_however_much_shared_memory_there_is(
    kernel: TwinFusedKernel, product: str, dtype: torch.dtype
) -> None:
    run, _ = PRODUCTS[product]
    operands = draw(2, dtype, count=33, slots=20, heads=2, width=17, widths=[70, 9], norm="all")
    results = []
    for size in SHARED_MEMORY:
        kernel.twin.set_shared_memory(size)
        results.append(run(kernel, operands))
    for other in results[1:]:
        assert torch.equal(other, results[0])


@over_dtypes
@over_products
def test_the_largest_window_fits_the_smallest_device(kernel: TwinFusedKernel, product: str, dtype: torch.dtype) -> None:
    kernel.twin.set_shared_memory(0)  # the twin ends the process where a block then takes more than any device has
    run, _ = PRODUCTS[product]
    run(kernel, draw(0, dtype, count=1, slots=64, heads=1, width=3, widths=[5] * 8, norm=None))


@over_dtypes
@over_products
@pytest.mark.parametrize(("count", "slots"), [(0, 4), (5, 0)])
def test_no_query_or_no_slot_gives_zeros(
    kernel: TwinFusedKernel, product: str, dtype: torch.dtype, count: int, slots: int
) -> None:
    run, _ = PRODUCTS[product]
    operands = draw(0, dtype, count=5, slots=4, heads=2, norm=None, indexed=True)
    windows = replace(operands.problem.windows, leading=(count,), slots=slots)
    assert operands.problem.window_index is not None
    problem = replace(
        operands.problem, windows=windows, window_index=operands.problem.window_index[:count, :slots].contiguous()
    )
    x, a = operands.x[:count], operands.a[:count, :, :slots].contiguous()
    assert not run(kernel, replace(operands, problem=problem, x=x, a=a)).any()


@over_dtypes
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("product", ["scores", "project"])
def test_a_bad_feature_spoils_the_windows_that_read_it_and_no_other(
    kernel: TwinFusedKernel, product: str, dtype: torch.dtype, poison: float
) -> None:
    run, _ = PRODUCTS[product]
    operands = draw(0, dtype, count=20, slots=4, heads=3, width=8, widths=[24], norm=None, indexed=False)
    operands.problem.keys[0][0, 0, 0, 0, 3] = poison  # read by window 0 alone
    out = run(kernel, operands)
    assert not out[0].isfinite().all()
    assert out[1:].isfinite().all()


@pytest.mark.parametrize("product", ["project", "outer"])
def test_a_loss_scale_does_not_overflow_what_is_pooled_in_float16(kernel: TwinFusedKernel, product: str) -> None:
    run, plain = PRODUCTS[product]
    operands = draw(0, torch.float16, count=33, slots=9, heads=3, width=20, widths=[70], norm=None, peaked=1.0)
    small = replace(operands, x=operands.x * 2.0**-10, weight=operands.weight * 2.0**-10)
    scaled = replace(small, a=operands.a * 2.0**18)
    assert scaled.a.abs().max() > torch.finfo(torch.float16).max
    comparison = Comparison()
    comparison.add(run(kernel, scaled), plain(small) * 2.0**18, plain(scaled.map(lambda tensor: tensor.double())))
    comparison.check(product, VALUES, ["root_mean_square", "largest"])


def test_more_parts_than_chunks_of_channels_are_refused_in_words(
    kernel: TwinFusedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_fused, "_parts", lambda *_: 3)
    with pytest.raises(ValueError, match="2 chunks of channels cannot be divided into 3 parts"):
        _products.scores(kernel, draw(0, torch.bfloat16, widths=[65], norm=None))
