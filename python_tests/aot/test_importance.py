"""The kernels on whole sequences, compiled for the GPUs that matter: they fit, hardly spill, use tensor cores."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from python_tests.aot._compiler import Kernel, compile_launches
from vr_kernels.ops.attention_importance.triton import TritonRows
from vr_kernels.ops.attention_received import triton as received_triton

# A100, H100 and H200, B200, each with the dtype that they are mostly used with, and one of them with the others.
TARGETS = [(80, torch.bfloat16), (90, torch.bfloat16), (100, torch.bfloat16), (90, torch.float16), (90, torch.float32)]
SHARED_LIMIT = 101_376  # what the GPUs with least of it have
STACK_LIMIT = 32  # bytes: what ptxas spills of a thread in some of these, often far below its limit of registers
WIDEST_STACK_LIMIT = 64  # of attention received at heads of 256, where a program holds a tile of each of four operands
TENSOR_CORE = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"

# The CLS row of CLIP, 32 rows of a language model whose heads share keys, the widest heads.
SHAPES = {"CLS": (1, 16, 16, 64), "rows": (32, 28, 4, 128), "widest": (5, 2, 1, 256)}


def importance(dtype: torch.dtype, shape: tuple[int, int, int, int], packed: bool) -> None:
    """``attention_importance`` as its backend calls Triton, with both gradients."""
    rows, heads, kv_heads, width = shape
    empty = functools.partial(torch.empty, device="meta")
    query = empty(5, rows, heads, width, dtype=dtype)
    key = empty(*([5 * 577] if packed else [5, 577]), kv_heads, width, dtype=dtype)
    mask = None if packed else empty(5, 577, dtype=torch.bool)
    bounds = empty(6, dtype=torch.int32) if packed else None
    kernel, scale = TritonRows(), width**-0.5
    weights = kernel.forward(query, key, mask, bounds, True, scale)
    kernel.backward(weights, query, key, mask, bounds, weights, scale, [True, True])


def assert_fits(
    call: Callable[[], None], architecture: int, tensor_cores: set[str], stack_limit: int = STACK_LIMIT
) -> list[Kernel]:
    """``tensor_cores``: the kernels that must have products on them; the others must have none."""
    kernels = compile_launches(architecture, call)
    for kernel in kernels:
        assert kernel.shared_bytes <= SHARED_LIMIT, f"{kernel.name}: {kernel.shared_bytes}"
        assert kernel.resources["LOCAL"] == 0, f"{kernel.name}: {kernel.resources}"
        assert kernel.resources["STACK"] <= stack_limit, f"{kernel.name}: {kernel.resources}"
        assert (kernel.count(TENSOR_CORE) > 0) is (kernel.name in tensor_cores), kernel.name
    return kernels


IMPORTANCE = {"importance_forward", "importance_rows_gradient", "importance_key_gradient"}


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_importance_fits(shape: str, packed: bool, dtype: torch.dtype, architecture: int) -> None:
    on_tensor_cores = {torch.bfloat16: IMPORTANCE, torch.float16: {"importance_forward"}, torch.float32: set()}
    call = functools.partial(importance, dtype, SHAPES[shape], packed)
    assert {kernel.name for kernel in assert_fits(call, architecture, on_tensor_cores[dtype])} == IMPORTANCE


def received(dtype: torch.dtype, shape: tuple[int, int, int, int], packed: bool) -> None:
    """``attention_received`` as its backend calls Triton, with both gradients: causal where nothing is packed."""
    _, heads, kv_heads, width = shape
    empty = functools.partial(torch.empty, device="meta")
    leading = [5 * 577] if packed else [5, 577]
    query, key = (empty(*leading, count, width, dtype=dtype) for count in (heads, kv_heads))
    bounds = empty(6, dtype=torch.int32) if packed else None
    arguments = (query, key, bounds, None, not packed, width**-0.5)
    received_triton.backward(received_triton.forward(*arguments), *arguments, [True, True, False])


RECEIVED = {"received_lse", "received_forward", "received_rows_gradient", "received_key_gradient"}


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_received_fits(shape: str, packed: bool, dtype: torch.dtype, architecture: int) -> None:
    on_tensor_cores = set() if dtype == torch.float32 else RECEIVED
    call = functools.partial(received, dtype, SHAPES[shape], packed)
    stack_limit = WIDEST_STACK_LIMIT if shape == "widest" else STACK_LIMIT
    assert {kernel.name for kernel in assert_fits(call, architecture, on_tensor_cores, stack_limit)} == RECEIVED
