"""Models of other libraries. Nothing here imports them before it is used."""

from vr_kernels.integrations.encoder import FeatureCapture, capture_features
from vr_kernels.integrations.pruning import apply_pruning, remove_pruning
from vr_kernels.integrations.visionzip import VisionZip
from vr_kernels.integrations.visionzip_models import apply_visionzip, remove_visionzip, train_projector_only
from vr_kernels.integrations.vispruner import VisPruner

__all__ = [
    "FeatureCapture",
    "VisPruner",
    "VisionZip",
    "apply_pruning",
    "apply_visionzip",
    "capture_features",
    "remove_pruning",
    "remove_visionzip",
    "train_projector_only",
]
