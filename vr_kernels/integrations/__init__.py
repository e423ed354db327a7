"""Models of other libraries. Nothing here imports them before it is used."""

from vr_kernels.integrations.encoder import FeatureCapture, capture_features
from vr_kernels.integrations.pruning import apply_pruning, remove_pruning
from vr_kernels.integrations.vision_remember import (
    apply_vision_remember,
    load_vision_remember,
    peft_modules_to_save,
    record_window_attention,
    remove_vision_remember,
    save_vision_remember,
)
from vr_kernels.integrations.visionzip import VisionZip
from vr_kernels.integrations.visionzip_models import apply_visionzip, remove_visionzip, train_projector_only
from vr_kernels.integrations.vispruner import VisPruner

__all__ = [
    "FeatureCapture",
    "VisPruner",
    "VisionZip",
    "apply_pruning",
    "apply_vision_remember",
    "apply_visionzip",
    "capture_features",
    "load_vision_remember",
    "peft_modules_to_save",
    "record_window_attention",
    "remove_pruning",
    "remove_vision_remember",
    "remove_visionzip",
    "save_vision_remember",
    "train_projector_only",
]
