"""Modules: parameters and one call to an operator."""

from vr_kernels.nn.bidirectional_token_attention import BidirectionalTokenAttention
from vr_kernels.nn.local_cross_attention import LocalCrossAttention

__all__ = ["BidirectionalTokenAttention", "LocalCrossAttention"]
