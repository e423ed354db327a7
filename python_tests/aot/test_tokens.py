"""The kernels on token rows, compiled for the GPUs that matter: they fit, spill nothing and move 16 bytes at a time."""

from __future__ import annotations

import functools

import pytest
import torch

from python_tests.aot._compiler import Kernel, compile_launches
from vr_kernels.ops._triton.token_launch import LARGEST_WIDTH, TritonTokens
from vr_kernels.ops.gather_tokens import driver as gather
from vr_kernels.ops.scatter_add_tokens import driver as scatter
from vr_kernels.ops.text_guide_token import driver as guide

ARCHITECTURES = [80, 90, 100]  # A100, H100 and H200, B200
DTYPES = [torch.bfloat16, torch.float32]
NAMES = {"text_guide", "gather", "gather_backward", "add_guide", "scatter_add"}


def layer(dtype: torch.dtype, width: int) -> None:
    """What a layer launches forward and backward, on meta tensors: five tiles of 64 tokens and a prompt."""
    kernel = TritonTokens()
    stream = torch.empty(1, 450, width, dtype=dtype, device="meta")
    rows = torch.empty(1, 320, dtype=torch.int64, device="meta")
    mask = torch.empty(1, 450, dtype=torch.bool, device="meta")
    weight = torch.empty(width, dtype=dtype, device="meta")
    guide.forward(kernel, stream, mask)
    out, inverse_rms, text_row = gather.forward(kernel, stream, rows, weight, mask, None, 1e-6)
    gather.backward(kernel, out, stream, rows, weight, None, inverse_rms, text_row, 1e-6, [True, True])
    scatter.backward(kernel, scatter.forward(kernel, stream, rows, out[:, :-1]), rows)


@functools.cache
def compiled(architecture: int, dtype: torch.dtype, width: int) -> list[Kernel]:
    return compile_launches(architecture, functools.partial(layer, dtype, width))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [896, 3584])
def test_a_language_model_s_rows_fit_the_registers(width: int, dtype: torch.dtype, architecture: int) -> None:
    kernels = compiled(architecture, dtype, width)
    assert {kernel.name for kernel in kernels} == NAMES
    for kernel in kernels:
        assert kernel.resources["STACK"] == kernel.resources["LOCAL"] == 0, f"{kernel.name}: {kernel.resources}"
        if kernel.name != "add_guide":  # which adds at a row a channel
            assert kernel.count(r"ld\.global\S*\.v4") > 0, kernel.name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_rows_fit_too(dtype: torch.dtype) -> None:
    for kernel in compiled(90, dtype, LARGEST_WIDTH):
        assert kernel.resources["STACK"] == kernel.resources["LOCAL"] == 0, f"{kernel.name}: {kernel.resources}"
