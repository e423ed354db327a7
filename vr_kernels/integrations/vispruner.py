"""``VisPruner``: a Hugging Face vision tower that hands on its important and its diverse patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.compression.pruning import vispruner
from vr_kernels.compression.visionzip import ZippedTokens, dominance
from vr_kernels.integrations._vision_tower import VisionTower
from vr_kernels.integrations.encoder import capture_features
from vr_kernels.ops._arguments import Arguments
from vr_kernels.ops.token_selection import take_tokens


class VisPruner(nn.Module):
    """A CLIP or SigLIP tower whose images come as ``count`` of their patches (VisPruner, arXiv 2412.01818).

    int(count * important_ratio) are those that the CLS row attends to most, or for a tower without one those that
    receive most attention; the others are found by dropping the patches that are most like another
    (``vr_kernels.compression.pruning.vispruner``). No attention map is made, and SDPA is never given up. The tower is
    not changed. One object serves one thread.

    Args:
        tower: a CLIP or SigLIP vision tower of transformers 5.20 or newer, or a model that holds exactly one.
        count: how many patches stay. A CLS row is not among them.
        important_ratio: which share of them is chosen by attention.
        level: which of ``hidden_states`` the tokens are rows of; attention is that of the block that makes it.

    Raises:
        TypeError: tower is no module; a count or level that is no int. ValueError: no tower or several in it; a level
            that no block makes; a count or share that no image can meet.

    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                                          num_attention_heads=2, image_size=64, patch_size=8))
    >>> kept = VisPruner(tower, count=16)(torch.randn(2, 3, 64, 64))
    >>> kept.tokens.shape, kept.dominant.shape
    (torch.Size([2, 16, 32]), torch.Size([2, 16]))
    """

    def __init__(self, tower: nn.Module, count: int = 64, important_ratio: float = 0.5, *, level: int = -2) -> None:
        super().__init__()
        parts = VisionTower("VisPruner", tower)
        self.has_cls = parts.has_cls
        parts.check_level(level)
        arguments = Arguments("VisPruner")
        arguments.integer("count", count, 1)
        arguments.share("important_ratio", important_ratio)
        self.tower = tower
        self.count, self.important_ratio, self.level = count, important_ratio, level

    def forward(self, pixel_values: Tensor, **options: Any) -> ZippedTokens:
        """Images (B, 3, H, W), each pruned by itself; ``options`` go to the tower.

        Returns:
            ZippedTokens(tokens (B, count, D), dominant (B, count) patches in raster order, targets (B, 0), assignment
            and scores (B, P)). Tokens are differentiable in what the tower makes.
        """
        capture = capture_features(self.tower, self.level, saliency=self._scores)
        with capture:
            self.tower(pixel_values, **options)
        assert capture.saliency is not None
        scores = capture.saliency.flatten(1)  # (B, P)
        patches = capture.states[0][:, int(self.has_cls) :]  # (B, P, D)
        kept = vispruner(scores, patches, self.count, self.important_ratio)
        place = torch.arange(self.count, device=kept.device).expand_as(kept)
        assignment = torch.full(scores.shape, -1, device=kept.device).scatter(1, kept, place)
        return ZippedTokens(take_tokens(patches, kept), kept, kept[:, :0], assignment, scores)

    def extra_repr(self) -> str:
        return f"count={self.count}, important_ratio={self.important_ratio}, level={self.level}"

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        return dominance(query, key, has_cls=self.has_cls)  # (B, N); a sum over heads orders patches as their mean


@dataclass(frozen=True)
class VisPrunerBudget:
    """A ``Budget`` whose tokens are all dominant, and none a CLS row."""

    count: int = 64
    important_ratio: float = 0.5
    name = "vispruner"
    contextual = 0

    @property
    def dominant(self) -> int:
        return self.count

    def zipper(self, tower: nn.Module, level: int) -> VisPruner:
        return VisPruner(tower, self.count, self.important_ratio, level=level)
