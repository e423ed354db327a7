"""Models of other libraries. Nothing here imports them before it is used."""

from vr_kernels.integrations.encoder import FeatureCapture, capture_features

__all__ = ["FeatureCapture", "capture_features"]
