"""Local cross-attention by CUDA C++: how large its blocks are and what they are computed in."""

from __future__ import annotations

import torch

from vr_kernels.ops._cuda import CudaKernel
from vr_kernels.ops.local_cross_attention.blocked import Engine


def block_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 is widened: the gradients of u and g carry loss scale times feature outliers, which it cannot hold."""
    return torch.float32 if dtype == torch.float16 else dtype


# Sixteen heads are the rows of a matrix instruction, and 24 MB of u stay in the L2 of an A100 (40 MB) or later.
ENGINE = Engine(kernel=CudaKernel(), block_dtype=block_dtype, least_heads=16, block_bytes=24 << 20)
