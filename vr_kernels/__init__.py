"""Custom kernels for the operators of Vision Remember, VisionZip and LLaVA-STF, as torch operators and modules."""

from vr_kernels._version import __version__
from vr_kernels.integrations import capture_features
from vr_kernels.nn import LocalCrossAttention
from vr_kernels.ops import deformable_attention, explain, local_attention, local_cross_attention, window_index_from_grid

__all__ = [
    "LocalCrossAttention",
    "__version__",
    "capture_features",
    "deformable_attention",
    "explain",
    "local_attention",
    "local_cross_attention",
    "window_index_from_grid",
]
