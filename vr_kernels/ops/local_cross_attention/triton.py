"""Local cross-attention by Triton: how large its blocks are and what they are computed in, and the fused products."""

from __future__ import annotations

from vr_kernels.ops._triton.fused import TritonFusedKernel
from vr_kernels.ops._triton.launch import TritonKernel
from vr_kernels.ops.local_cross_attention.blocked import Engine, widen_float16
from vr_kernels.ops.local_cross_attention.fused import FusedEngine

# Eight heads fill half of the smallest matrix-core tile, and 12 MB of u stay in the L2 of an A100 (40 MB) or later
# beside the weights and features of their block.
ENGINE = Engine(kernel=TritonKernel(), block_dtype=widen_float16, least_heads=8, block_bytes=12 << 20)

FUSED = FusedEngine(kernel=TritonFusedKernel(), blocks=ENGINE)
