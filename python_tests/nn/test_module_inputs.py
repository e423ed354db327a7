"""What a module is given by mistake: a sentence that names it, in place of torch's words about a product inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vr_kernels.compression.projectors import MLPProjector
from vr_kernels.nn import (
    BidirectionalTokenAttention,
    DeformableCrossAttention,
    GlobalCrossAttention,
    LocalCrossAttention,
    MultiBlockTokenFusion,
    VisionRemember,
    VisionRememberConfig,
    VisionTokenMap,
)

CROSS = [LocalCrossAttention, GlobalCrossAttention, DeformableCrossAttention]
TOKENS, LEVELS = torch.zeros(2, 2, 2, 12), [torch.zeros(2, 4, 4, width) for width in (6, 10)]
STREAM, ROWS = torch.zeros(1, 6, 12), torch.tensor([[1, 2, 3, 4]])


def cross(kind: type[nn.Module]) -> nn.Module:
    return kind(12, (6, 10), 3)


def block(stream: Any) -> Tensor:
    config = VisionRememberConfig(hidden_size=12, num_attention_heads=3, feature_dims=(6, 10), num_heads=2)
    mask = torch.tensor([[False, True, True, True, True, False]])
    vision_map = VisionTokenMap.from_grid(mask, grid=(2, 2), feature_grid=(4, 4))
    return VisionRemember(config)(stream, vision_map, [level[:1] for level in LEVELS])  # type: ignore[no-any-return]


def bidirectional(stream: Any) -> Tensor:
    return BidirectionalTokenAttention(12, 3)(stream, ROWS)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", CROSS)
def test_tokens_in_another_dtype_than_the_weights_are_named(kind: type[nn.Module]) -> None:
    words = f"^{kind.__name__}: query is torch.bfloat16, the module's weights are torch.float32; convert one of them"
    with pytest.raises(TypeError, match=words):
        cross(kind)(TOKENS.bfloat16(), [level.bfloat16() for level in LEVELS])


@pytest.mark.parametrize("kind", CROSS)
def test_levels_in_another_dtype_than_the_tokens_are_named(kind: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=r": features\[0\] is torch.bfloat16, query is torch.float32; they must share"):
        cross(kind)(TOKENS, [level.bfloat16() for level in LEVELS])


@pytest.mark.parametrize(
    ("layer", "name"), [(block, "TokenFeatureCrossAttention"), (bidirectional, "BidirectionalTokenAttention")]
)
def test_a_stream_in_another_dtype_than_the_weights_is_named(layer: Callable[..., Tensor], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: hidden_states is torch.bfloat16, the module's weights are"):
        layer(STREAM.bfloat16())


@pytest.mark.parametrize("kind", CROSS)
def test_autocast_takes_tokens_and_levels_of_two_dtypes(kind: type[nn.Module]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert cross(kind)(TOKENS.bfloat16(), LEVELS).dtype == torch.bfloat16
        assert cross(kind)(TOKENS, [level.bfloat16() for level in LEVELS]).dtype == torch.bfloat16


def test_a_projection_that_converts_its_input_is_left_to_do_so() -> None:
    class Converting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.weight.dtype))

    module = cross(LocalCrossAttention)
    module.query_proj = Converting(12, 12)
    assert module(TOKENS.bfloat16(), LEVELS).shape == TOKENS.shape


def test_tokens_of_another_width_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"^LocalCrossAttention: query has shape \(2, 2, 2, 8\); its last size must be 12"
    ):
        cross(LocalCrossAttention)(TOKENS[..., :8], LEVELS)


@pytest.mark.parametrize("kind", CROSS)
@pytest.mark.parametrize(("query", "got"), [(None, "None"), (TOKENS.numpy(), "a ndarray")], ids=["None", "numpy"])
def test_tokens_that_are_no_tensor_are_named(kind: type[nn.Module], query: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__}: query is {got}; it must be a torch.Tensor"):
        cross(kind)(query, LEVELS)


@pytest.mark.parametrize("layer", [block, bidirectional])
def test_a_stream_that_is_no_tensor_is_named(layer: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r": hidden_states is a ndarray; it must be a torch.Tensor"):
        layer(STREAM.numpy())


READERS: dict[str, Callable[[Any], Any]] = {
    **{kind.__name__: lambda levels, kind=kind: cross(kind)(TOKENS, levels) for kind in CROSS},  # type: ignore[misc]
    "MultiBlockTokenFusion": MultiBlockTokenFusion((6, 10)),
    "MLPProjector": MLPProjector(6, 12),
}
NO_LEVELS: dict[str, Any] = {
    "features is None": None,
    "features is a int": 3,
    "features[0] is None": [None, None],
    "features[1] is a list": [LEVELS[0], [1.0]],
    "features[0] is a str": dict(zip(("low", "high"), LEVELS, strict=True)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("words", "levels"), NO_LEVELS.items(), ids=NO_LEVELS)
def test_levels_that_are_no_tensors_are_named(reader: str, words: str, levels: Any) -> None:
    with pytest.raises(TypeError) as caught:
        READERS[reader](levels)
    assert str(caught.value) == f"{reader}: {words}; it must be a torch.Tensor"
