"""Custom kernels for the operators of Vision Remember, VisionZip and LLaVA-STF, as torch operators and modules."""

from vr_kernels._version import __version__
from vr_kernels.integrations import VisionZip, apply_visionzip, capture_features, remove_visionzip
from vr_kernels.nn import LocalCrossAttention
from vr_kernels.ops import (
    attention_density,
    attention_importance,
    attention_received,
    cls_saliency,
    explain,
    local_attention,
    local_cross_attention,
    merge_contextual_tokens,
    select_dominant_tokens,
    window_index_from_grid,
)

__all__ = [
    "LocalCrossAttention",
    "VisionZip",
    "__version__",
    "apply_visionzip",
    "attention_density",
    "attention_importance",
    "attention_received",
    "capture_features",
    "cls_saliency",
    "explain",
    "local_attention",
    "local_cross_attention",
    "merge_contextual_tokens",
    "remove_visionzip",
    "select_dominant_tokens",
    "window_index_from_grid",
]
