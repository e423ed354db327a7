"""What this library relies on inside a Hugging Face vision tower, all of it in this one file.

Held by transformers 5.20 to 5.23, for CLIP, SigLIP and the towers made after them:

    tower.embeddings.patch_embedding       Conv2d of pixels to a grid of patches (B, D, H, W)
    tower.embeddings.class_embedding       there if the sequence starts with a CLS row
    tower.encoder.layers[i]                block i + 1: called with hidden_states[i] as its first argument, returns
                                           hidden_states[i + 1] (B, N, D), alone or first in a tuple
    layers[i].self_attn.q_proj, k_proj     called once a forward pass, by themselves; return (B, N, h * d), not scaled
    layers[i].self_attn.head_dim

Where the tower sits differs: ``CLIPVisionModel`` is the tower in 5.23, and holds it as ``vision_model`` before; LLaVA
models hold either in ``vision_tower``. So it is found by what it has, which needs no import of transformers.
Gradient checkpointing wraps a block's ``forward`` in 5.23 and its ``__call__``, hooks included, before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vr_kernels.nn._sizes import check_module


class VisionTower:
    """The parts of one tower. ``model`` is the tower or any module that holds exactly one."""

    def __init__(self, operation: str, model: nn.Module) -> None:
        check_module(operation, "vision_model", model)
        towers = [module for module in model.modules() if _is_tower(module)]
        if len(towers) != 1:
            raise ValueError(
                f"{operation}: vision_model, a {type(model).__name__}, holds {len(towers)} vision towers; it must be "
                "or hold exactly one, built as transformers' CLIPVisionModel or SiglipVisionModel"
            )
        self.module: Any = towers[0]
        self._operation = operation

    @property
    def patch_embedding(self) -> nn.Module:
        return self.module.embeddings.patch_embedding  # type: ignore[no-any-return]

    @property
    def has_cls(self) -> bool:
        return hasattr(self.module.embeddings, "class_embedding")

    @property
    def blocks(self) -> nn.ModuleList:
        return self.module.encoder.layers  # type: ignore[no-any-return]

    def check_level(self, level: int) -> None:
        """Refuse a number of hidden_states that no block makes; negative ones count from the end."""
        blocks = len(self.blocks)
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"{self._operation}: level is {level!r}; it must be an int")
        if not 1 <= (level + blocks + 1 if level < 0 else level) <= blocks:
            raise ValueError(
                f"{self._operation}: level is {level}; the tower's {blocks} blocks make hidden_states 1 to {blocks}, "
                f"or {-blocks} to -1"
            )

    def projections(self, block: int) -> tuple[nn.Module, nn.Module]:
        """q_proj and k_proj of a block, 1-based; looked up anew, since adapters put others in their place."""
        attention: Any = self.blocks[block - 1].self_attn
        return attention.q_proj, attention.k_proj

    def split_heads(self, block: int, projected: Tensor) -> Tensor:
        """(B, N, h*d) -> (B, N, h, d)"""
        attention: Any = self.blocks[block - 1].self_attn
        return projected.unflatten(-1, (-1, attention.head_dim))  # type: ignore[no-any-return]


def hidden_state(output: Any) -> Tensor:
    """What a block returns, without what may come along with it."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _is_tower(module: Any) -> bool:
    embeddings, encoder = getattr(module, "embeddings", None), getattr(module, "encoder", None)
    patches, blocks = getattr(embeddings, "patch_embedding", None), getattr(encoder, "layers", None)
    if not isinstance(patches, nn.Module) or not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        return False
    attention = getattr(blocks[0], "self_attn", None)
    return all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim"))
