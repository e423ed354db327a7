"""Modules: parameters and one call to an operator."""

from vr_kernels.nn.bidirectional_token_attention import BidirectionalTokenAttention
from vr_kernels.nn.deep_stack import DeepStack
from vr_kernels.nn.deformable_cross_attention import DeformableCrossAttention
from vr_kernels.nn.global_cross_attention import GlobalCrossAttention
from vr_kernels.nn.local_cross_attention import LocalCrossAttention
from vr_kernels.nn.spatial_vision_aggregator import SpatialVisionAggregator
from vr_kernels.nn.token_feature_cross_attention import TokenFeatureCrossAttention
from vr_kernels.nn.token_fusion import (
    MultiBlockTokenFusion,
    SpatialTokenFusion,
    TokenAvgPool,
    TokenConcat,
    fusion_levels,
)
from vr_kernels.nn.vision_remember import VisionRemember
from vr_kernels.nn.vision_remember_config import VisionRememberConfig
from vr_kernels.nn.vision_token_map import VisionTokenMap

__all__ = [
    "BidirectionalTokenAttention",
    "DeepStack",
    "DeformableCrossAttention",
    "GlobalCrossAttention",
    "LocalCrossAttention",
    "MultiBlockTokenFusion",
    "SpatialTokenFusion",
    "SpatialVisionAggregator",
    "TokenAvgPool",
    "TokenConcat",
    "TokenFeatureCrossAttention",
    "VisionRemember",
    "VisionRememberConfig",
    "VisionTokenMap",
    "fusion_levels",
]
