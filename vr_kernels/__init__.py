"""Custom kernels for the operators of Vision Remember, VisionZip and LLaVA-STF, as torch operators and modules."""

from vr_kernels._version import __version__
from vr_kernels.nn import (
    LocalCrossAttention,
    TokenFeatureCrossAttention,
    VisionRemember,
    VisionRememberConfig,
    VisionTokenMap,
)
from vr_kernels.ops import explain, local_attention, local_cross_attention, window_index_from_grid

__all__ = [
    "LocalCrossAttention",
    "TokenFeatureCrossAttention",
    "VisionRemember",
    "VisionRememberConfig",
    "VisionTokenMap",
    "__version__",
    "explain",
    "local_attention",
    "local_cross_attention",
    "window_index_from_grid",
]
