"""``record_window_attention``: what the vision tokens looked at, for pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vr_kernels.integrations.vision_remember.context import NAME
from vr_kernels.nn import LocalCrossAttention, VisionTokenMap
from vr_kernels.nn._sizes import check_module
from vr_kernels.nn.token_feature_cross_attention import TokenFeatureCrossAttention

_BLOCK = re.compile(rf"(?:^|\.)layers\.(\d+)\.{NAME}\.(?:.+\.)?cross_attention$")


@dataclass(frozen=True)
class WindowAttention:
    """Of one block, in the last prefill.

    Args:
        weights: (V, h, K) float32, how much each head of each vision token took of each of its features; over K they
            sum to 1, or to 0 where a token has no feature.
        vision_map: which features those are.
    """

    weights: Tensor
    vision_map: VisionTokenMap

    def over_features(self, token: int | None = None) -> Tensor:
        """(tiles, H, W) float32, or (M,) where the features have no grid: the weights, a mean over heads, at the
        features that they are of. Of one vision token, or of all: 0 where no token looks, and where several look, their
        sum."""
        weights, index = self.weights.mean(1), self.vision_map.window_index
        if token is not None:
            weights, index = weights[token], index[token]
        rows = self.vision_map.feature_rows
        present = index >= 0
        over = weights.new_zeros(rows).index_add_(0, index[present].long(), weights[present])
        grid = self.vision_map.feature_grid
        return over if grid is None else over.view(-1, *grid)


@contextmanager
def record_window_attention(model: nn.Module) -> Iterator[dict[int, WindowAttention]]:
    """Record, while the context is open, the attention weights of the model's Vision Remember blocks.

    The outputs stay what they are up to rounding; weights are computed beside them, which costs time and memory.

    Yields:
        by decoder layer, counted from 1 as in ``vr_layers``: the attention of its last prefill. Empty before one.

    Raises:
        ValueError: a model without a block of local attention. TypeError: a model that is no module.
    """
    check_module("record_window_attention", "model", model)
    # An adapter keeps several blocks for one layer, of which one runs.
    layers = [
        (int(found[1]) + 1, layer)
        for name, layer in model.named_modules()
        if (found := _BLOCK.search(name)) and isinstance(layer, TokenFeatureCrossAttention)
    ]
    local = [(number, layer) for number, layer in layers if isinstance(layer.attention, LocalCrossAttention)]
    if not local:
        raise ValueError(
            "record_window_attention: model has no Vision Remember block with local attention; those of global or "
            "deformable attention have no windows"
        )
    recorded: dict[int, WindowAttention] = {}
    with ExitStack() as handles:
        for number, layer in local:
            for handle in _record(layer, recorded, number):
                handles.callback(handle.remove)
        yield recorded


def _record(layer: TokenFeatureCrossAttention, recorded: dict[int, WindowAttention], number: int) -> Iterator[Any]:
    """The handles of the hooks: one sees the map, one asks for weights, one takes them off the output again."""
    maps: list[VisionTokenMap] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        maps[:] = [args[1] if len(args) > 1 else kwargs["vision_map"]]

    def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"need_weights": True}

    def take(_: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> Tensor:
        out, weights = output
        recorded[number] = WindowAttention(weights.detach().float().flatten(0, -3), maps[0])
        return out

    yield layer.register_forward_pre_hook(see, with_kwargs=True)
    yield layer.attention.register_forward_pre_hook(ask, with_kwargs=True)
    yield layer.attention.register_forward_hook(take)
