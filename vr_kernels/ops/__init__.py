"""Operators, one room each: the public function, its definition, its registration with torch, its backends."""

from vr_kernels.ops._dispatch import explain
from vr_kernels.ops._observation import observed
from vr_kernels.ops._settings import SETTINGS
from vr_kernels.ops._windows import window_index_from_grid
from vr_kernels.ops.attention_importance import attention_importance
from vr_kernels.ops.attention_received import attention_density, attention_received
from vr_kernels.ops.bidirectional_attention import bidirectional_attention
from vr_kernels.ops.deformable_attention import deformable_attention
from vr_kernels.ops.gather_tokens import gather_tokens
from vr_kernels.ops.local_attention import local_attention
from vr_kernels.ops.local_cross_attention import local_cross_attention
from vr_kernels.ops.saliency import cls_saliency
from vr_kernels.ops.scatter_add_tokens import scatter_add_tokens
from vr_kernels.ops.text_guide_token import text_guide_token
from vr_kernels.ops.token_fusion import patch_linear
from vr_kernels.ops.token_selection import merge_contextual_tokens, select_dominant_tokens

if SETTINGS.observes:
    globals().update(observed(SETTINGS))

__all__ = [
    "attention_density",
    "attention_importance",
    "attention_received",
    "bidirectional_attention",
    "cls_saliency",
    "deformable_attention",
    "explain",
    "gather_tokens",
    "local_attention",
    "local_cross_attention",
    "merge_contextual_tokens",
    "patch_linear",
    "scatter_add_tokens",
    "select_dominant_tokens",
    "text_guide_token",
    "window_index_from_grid",
]
