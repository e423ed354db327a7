"""Every kernel in every shipped configuration, compiled for an H100, and for others in those that need the most: it
fits, and spills no register."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import triton

from python_tests.aot import _calls
from python_tests.aot._compiler import Kernel, compile_launches
from vr_kernels.ops._triton.configurations import ATTENTION, FEATURE_GRADIENT

VERSION = ".".join(triton.__version__.split(".")[:2])
ARCHITECTURES = [80, 90, 100]  # A100, H100 and H200, B200
DTYPES = {2: torch.bfloat16, 4: torch.float32}

# Bytes of shared memory that a block may have on the GPUs with least of it (8.6, 8.9, 12.0): what fits there fits all.
SHARED_LIMIT = 101_376

# Instructions of tensor cores: the oldest, Hopper's for tiles of 64 rows, and Blackwell's.
TENSOR_CORE = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"


# Bytes of stack a thread, to which registers are spilled, that a kernel may need by each supported version of Triton.
# The tiles were chosen with the newest; an older one's float32 scores of 64 slots keep six numbers there.
STACK_LIMIT = {"3.6": 24, "3.7": 0}


@functools.cache
def compiled(architecture: int, call: str, dtype: torch.dtype, slots: int, **options: Any) -> list[Kernel]:
    run = getattr(_calls, call)
    return compile_launches(architecture, functools.partial(run, dtype, _calls.WINDOWS[slots], **options))


def assert_fits(kernels: list[Kernel], names: set[str]) -> None:
    assert {kernel.name for kernel in kernels} == names
    for kernel in kernels:
        assert kernel.shared_bytes <= SHARED_LIMIT, kernel.name
        assert kernel.resources["LOCAL"] == 0, f"{kernel.name}: {kernel.resources}"
        assert kernel.resources["STACK"] <= STACK_LIMIT[VERSION], f"{kernel.name}: {kernel.resources}"


MOST_SLOTS = max(_calls.WINDOWS)


def over_attention(architectures: Sequence[int]) -> Any:
    """Each dtype and number of slots on an H100, and on the others the most slots, which need the most.

    The dtype is part of a test's name, by which the oldest Triton is given its own.
    """
    keys = [(architecture, *key) for architecture in architectures for key in ATTENTION]
    return pytest.mark.parametrize(
        ("architecture", "itemsize", "slots"),
        [
            pytest.param(*key, id=f"{key[0]}-{DTYPES[key[1]]}-{key[2]} slots")
            for key in keys
            if key[0] == 90 or key[2] == MOST_SLOTS
        ],
    )


FUSED_KERNELS = {"feature_statistics", "window_scores", "window_project", "window_outer"}
GRID_KERNELS = {"window_attention_forward", "window_attention_backward", "disjoint_windows"}
INDEXED_KERNELS = {"window_attention_forward", "window_attention_backward", "overlapping_windows"}


def test_both_tables_have_the_same_keys() -> None:
    assert ATTENTION.keys() == FEATURE_GRADIENT.keys() == {(b, k) for b in DTYPES for k in _calls.WINDOWS}


@over_attention(ARCHITECTURES)
def test_cross_attention_with_everything_fits(architecture: int, itemsize: int, slots: int) -> None:
    kernels = compiled(architecture, "cross_attention", DTYPES[itemsize], slots, norm="level")
    assert_fits(kernels, GRID_KERNELS)


@over_attention([90])
def test_overlapping_windows_fit(architecture: int, itemsize: int, slots: int) -> None:
    kernels = compiled(architecture, "cross_attention", DTYPES[itemsize], slots, indexed=True, norm="all")
    assert_fits(kernels, INDEXED_KERNELS)


@over_attention([90])
def test_plain_attention_fits(architecture: int, itemsize: int, slots: int) -> None:
    assert_fits(compiled(architecture, "attention", DTYPES[itemsize], slots), GRID_KERNELS)


def test_float16_features_in_float32_blocks_fit() -> None:
    assert_fits(compiled(90, "cross_attention", torch.float16, 16, extras=False), GRID_KERNELS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_deformable_attention_fits_and_reads_whole_rows(dtype: torch.dtype, architecture: int) -> None:
    kernels = compile_launches(architecture, functools.partial(_calls.deformable, dtype))
    assert_fits(kernels, {"deformable_forward", "deformable_backward", "deformable_value_gradient"})
    for kernel in kernels:
        assert kernel.count(r"ld\.global\S*\.v[24]") > 0, kernel.name
        assert kernel.count(r"atom\.|red\.global") == 0, kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_uses_tensor_cores_and_copies_16_bytes_ahead(architecture: int) -> None:
    for kernel in compiled(architecture, "cross_attention", torch.bfloat16, 16, extras=False):
        assert kernel.count(TENSOR_CORE) > 0, kernel.name
        if kernel.name.startswith("window_attention"):
            # Query and features of three levels, and the features again, each with the copies that fill its pipeline.
            assert kernel.count(r"cp\.async\.cg\.shared\.global [^;]*, 0x10,") >= 3 * 3, kernel.name
        assert kernel.count(r"st\.global\S*\.v4") > 0, kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_never_rounded_to_tf32(architecture: int) -> None:
    for kernel in compiled(architecture, "cross_attention", torch.float32, 16, norm="level"):
        assert kernel.count("tf32") == 0, kernel.name
        assert kernel.count(TENSOR_CORE) == 0, kernel.name
        assert kernel.count(r"fma\.rn\.f32") > 0, kernel.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_fused_products_fit_and_bfloat16_uses_tensor_cores(dtype: torch.dtype, architecture: int) -> None:
    kernels = compiled(architecture, "cross_attention", dtype, 16, norm="level", backend="triton_fused")
    assert_fits(kernels, FUSED_KERNELS)
    for kernel in kernels:
        if dtype == torch.float32:
            assert kernel.count("tf32") == kernel.count(TENSOR_CORE) == 0, kernel.name
        elif kernel.name != "feature_statistics":
            assert kernel.count(TENSOR_CORE) > 0, kernel.name
            assert kernel.count(r"ld\.global\S*\.v4") > 0, kernel.name


@pytest.mark.parametrize(("dtype", "slots"), [(torch.bfloat16, 64), (torch.float32, 32), (torch.float32, 64)], ids=str)
def test_fused_products_of_large_windows_fit(dtype: torch.dtype, slots: int) -> None:
    assert_fits(
        compiled(90, "cross_attention", dtype, slots, norm="all", indexed=True, backend="triton_fused"), FUSED_KERNELS
    )


def test_fused_products_of_float16_fit() -> None:
    kernels = compiled(90, "cross_attention", torch.float16, 16, extras=False, backend="triton_fused")
    assert_fits(kernels, FUSED_KERNELS - {"feature_statistics"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("architecture", "kernel"), [(80, 1), (90, 1), (90, 2), (100, 1)])
def test_patch_linear_fits_and_multiplies_where_it_should(architecture: int, dtype: torch.dtype, kernel: int) -> None:
    kernels = compile_launches(architecture, functools.partial(_calls.patch_linear, dtype, kernel))
    assert_fits(kernels, {"patch_linear_forward"})
    assert kernels[0].count("tf32") == 0
    assert (kernels[0].count(TENSOR_CORE) > 0) == (dtype == torch.bfloat16)
