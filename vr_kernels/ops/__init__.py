"""Operators, one room each: the public function, its definition, its registration with torch, its backends."""

from vr_kernels.ops._dispatch import explain
from vr_kernels.ops._windows import window_index_from_grid
from vr_kernels.ops.attention_importance import attention_importance
from vr_kernels.ops.attention_received import attention_density, attention_received
from vr_kernels.ops.local_attention import local_attention
from vr_kernels.ops.local_cross_attention import local_cross_attention
from vr_kernels.ops.saliency import cls_saliency
from vr_kernels.ops.token_selection import merge_contextual_tokens, select_dominant_tokens

__all__ = [
    "attention_density",
    "attention_importance",
    "attention_received",
    "cls_saliency",
    "explain",
    "local_attention",
    "local_cross_attention",
    "merge_contextual_tokens",
    "select_dominant_tokens",
    "window_index_from_grid",
]
