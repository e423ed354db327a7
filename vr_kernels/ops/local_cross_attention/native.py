"""Local cross-attention on the CPU: how large its blocks are and what they are computed in."""

from __future__ import annotations

import torch

from vr_kernels.ops import _native
from vr_kernels.ops._window_native import NativeKernel
from vr_kernels.ops.local_cross_attention.blocked import Engine


def block_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 only where the CPU has it; float16 never: its GEMMs are no faster here, and u, g and their gradients
    carry feature outliers and loss scales that it cannot hold."""
    if dtype == torch.bfloat16 and _native.module().cpu_features().get("avx512_bf16", False):
        return dtype
    return torch.float32


# The best of 4 to 24 heads and 8 to 96 MB at the papers' shapes: a block outside the L2 costs less than split queries.
ENGINE = Engine(kernel=NativeKernel(), block_dtype=block_dtype, least_heads=4, block_bytes=40 << 20)
