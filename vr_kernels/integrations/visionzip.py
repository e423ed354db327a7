"""``VisionZip``: a Hugging Face vision tower that hands on few tokens, without eager attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vr_kernels.compression.visionzip import ZippedTokens, check_budget, dominance, key_metric, zip_tokens
from vr_kernels.integrations._vision_tower import VisionTower
from vr_kernels.integrations.encoder import capture_features
from vr_kernels.nn._sizes import check_tensor


class VisionZip(nn.Module):
    """A CLIP or SigLIP tower whose images come as ``dominant + contextual`` tokens (VisionZip, arXiv 2412.04467).

    The patches that the CLS row attends to most stay as they are, or for a tower without one those that receive most
    attention; the others are merged by the similarity of their keys (``vr_kernels.compression.zip_tokens``). Attention
    comes from one block's queries and keys while the tower runs with whatever attention it was loaded with: no
    attention map is made and SDPA is never given up. The tower is not changed. One object serves one thread.

    Args:
        tower: a CLIP or SigLIP vision tower of transformers 5.20 or newer, or a model that holds exactly one.
        dominant: how many tokens stay as they are, **the CLS row included**: 54 is CLS and 53 patches.
        contextual: how many the others are merged into.
        level: which of ``hidden_states`` the tokens are rows of; attention and keys are those of the block that makes
            it. -2, which LLaVA uses, is block 23 of 24 (1-based).
        merge: "sum", a target plus the mean of what joined it, as VisionZip's public code; "mean", as its paper.

    Raises:
        TypeError: tower is no module; a number that is no int. ValueError: no tower or several in it; a level that no
            block makes; a budget below what always stays, or, when called, above an image's rows; an unknown merge.

    >>> import torch
    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                                          num_attention_heads=2, image_size=64, patch_size=8))
    >>> zipped = VisionZip(tower, dominant=10, contextual=3)(torch.randn(2, 3, 64, 64))
    >>> zipped.tokens.shape, zipped.dominant.shape, zipped.assignment.shape
    (torch.Size([2, 13, 32]), torch.Size([2, 9]), torch.Size([2, 64]))
    """

    def __init__(
        self, tower: nn.Module, dominant: int = 54, contextual: int = 10, *, level: int = -2, merge: str = "sum"
    ) -> None:
        super().__init__()
        parts = VisionTower("VisionZip", tower)
        self.has_cls = parts.has_cls
        check_budget("VisionZip", dominant, contextual, has_cls=self.has_cls)
        parts.check_level(level)
        if merge not in ("sum", "mean"):
            raise ValueError(f'VisionZip: merge is {merge!r}; it must be "sum" or "mean"')
        self.tower = tower
        self.dominant, self.contextual, self.level, self.merge = dominant, contextual, level, merge

    def forward(self, pixel_values: Tensor, **options: Any) -> ZippedTokens:
        """Images (B, 3, H, W), or frames or tiles of several (B, T, 3, H, W), each zipped by itself.

        ``options`` go to the tower, such as ``interpolate_pos_encoding``.

        Returns:
            ZippedTokens(tokens (B, K, D), dominant (B, ...), targets (B, contextual), assignment and scores (B, P)), or
            (B, T, ...) each. Tokens are differentiable in what the tower makes.

        Raises:
            TypeError: pixel_values that are no tensor. ValueError: a budget above an image's rows.
        """
        check_tensor("VisionZip", "pixel_values", pixel_values)
        if pixel_values.dim() == 5:
            zipped = self.forward(pixel_values.flatten(0, 1), **options)
            return ZippedTokens(*(part.unflatten(0, pixel_values.shape[:2]) for part in zipped))
        observer = _Observer(self.has_cls)
        capture = capture_features(self.tower, self.level, saliency=observer)
        with capture:
            self.tower(pixel_values, **options)
        assert capture.saliency is not None
        return zip_tokens(
            capture.states[0],
            capture.saliency.flatten(1),  # (B, P)
            observer.metric,
            self.dominant,
            self.contextual,
            has_cls=self.has_cls,
            merge=self.merge,
        )

    def extra_repr(self) -> str:
        return f"dominant={self.dominant}, contextual={self.contextual}, level={self.level}, merge={self.merge!r}"


class _Observer:
    """Scores a block's rows, and keeps the metric of its keys: the keys themselves need not outlive the pass."""

    metric: Tensor

    def __init__(self, has_cls: bool) -> None:
        self.has_cls = has_cls

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        self.metric = key_metric(key)  # (B, N, d)
        return dominance(query, key, has_cls=self.has_cls)  # (B, N)
