"""Local cross-attention by CUDA C++: how large its blocks are and what they are computed in, and the fused products."""

from __future__ import annotations

from vr_kernels.ops._cuda import CudaKernel
from vr_kernels.ops._cuda_fused import CudaFusedKernel
from vr_kernels.ops.local_cross_attention.blocked import Engine, widen_float16
from vr_kernels.ops.local_cross_attention.fused import FusedEngine

# Sixteen heads are the rows of a matrix instruction, and 24 MB of u stay in the L2 of an A100 (40 MB) or later.
ENGINE = Engine(kernel=CudaKernel(), block_dtype=widen_float16, least_heads=16, block_bytes=24 << 20)

FUSED = FusedEngine(kernel=CudaFusedKernel(), blocks=ENGINE)
