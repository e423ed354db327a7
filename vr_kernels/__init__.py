"""Custom kernels for the operators of Vision Remember, VisionZip and LLaVA-STF, as torch operators and modules."""

from vr_kernels._version import __version__
from vr_kernels.integrations import capture_features
from vr_kernels.nn import (
    BidirectionalTokenAttention,
    LocalCrossAttention,
    MultiBlockTokenFusion,
    SpatialTokenFusion,
    TokenFeatureCrossAttention,
    VisionRemember,
    VisionRememberConfig,
    VisionTokenMap,
)
from vr_kernels.ops import (
    attention_density,
    attention_importance,
    attention_received,
    bidirectional_attention,
    cls_saliency,
    deformable_attention,
    explain,
    gather_tokens,
    local_attention,
    local_cross_attention,
    patch_linear,
    scatter_add_tokens,
    text_guide_token,
    window_index_from_grid,
)

__all__ = [
    "BidirectionalTokenAttention",
    "LocalCrossAttention",
    "MultiBlockTokenFusion",
    "SpatialTokenFusion",
    "TokenFeatureCrossAttention",
    "VisionRemember",
    "VisionRememberConfig",
    "VisionTokenMap",
    "__version__",
    "attention_density",
    "attention_importance",
    "attention_received",
    "bidirectional_attention",
    "capture_features",
    "cls_saliency",
    "deformable_attention",
    "explain",
    "gather_tokens",
    "local_attention",
    "local_cross_attention",
    "patch_linear",
    "scatter_add_tokens",
    "text_guide_token",
    "window_index_from_grid",
]
