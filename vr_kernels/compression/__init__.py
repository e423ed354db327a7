"""Ways to hand a language model fewer vision tokens."""

from vr_kernels.compression.anyres import anyres_order, pack_anyres
from vr_kernels.compression.projectors import PROJECTORS, Projected, Projector, build_projector
from vr_kernels.compression.visionzip import ZippedTokens, dominance, key_metric, zip_tokens

__all__ = [
    "PROJECTORS",
    "Projected",
    "Projector",
    "ZippedTokens",
    "anyres_order",
    "build_projector",
    "dominance",
    "key_metric",
    "pack_anyres",
    "zip_tokens",
]
