"""What a module is given or built of by mistake: a sentence that names it, in place of torch's or Python's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.compression import _projectors
from vr_kernels.compression.projectors import (
    DeformableProjector,
    MLPProjector,
    PerceiverProjector,
    PixelShuffleProjector,
    PoolProjector,
    STFProjector,
    TokenPackerProjector,
)
from vr_kernels.nn import (
    BidirectionalTokenAttention,
    DeepStack,
    DeformableCrossAttention,
    GlobalCrossAttention,
    LocalCrossAttention,
    MultiBlockTokenFusion,
    SpatialTokenFusion,
    SpatialVisionAggregator,
    TokenAvgPool,
    TokenConcat,
    VisionRemember,
    VisionRememberConfig,
    VisionTokenMap,
    fusion_levels,
)

CROSS = [LocalCrossAttention, GlobalCrossAttention, DeformableCrossAttention]
TOKENS, LEVELS = torch.zeros(2, 2, 2, 12), [torch.zeros(2, 4, 4, width) for width in (6, 10)]
STREAM, ROWS = torch.zeros(1, 6, 12), torch.tensor([[1, 2, 3, 4]])
REFUSIONS = [DeepStack, SpatialVisionAggregator]
MASK = torch.tensor([[False, True, True, True, True, False]])
VISION_MAP = VisionTokenMap.from_grid(MASK, grid=(2, 2), feature_grid=(4, 4))


def cross(kind: type[nn.Module]) -> nn.Module:
    return kind(12, (6, 10), 3)


def block(stream: Any) -> Tensor:
    config = VisionRememberConfig(hidden_size=12, num_attention_heads=3, feature_dims=(6, 10), num_heads=2)
    return VisionRemember(config)(stream, VISION_MAP, [level[:1] for level in LEVELS])  # type: ignore[no-any-return]


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


def refused(name: str, dtype: torch.dtype) -> str:
    return f": {name} is {dtype}, the module's weights are torch.float32; convert one of them"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", _projectors.NAMES)
def test_features_in_another_dtype_than_a_projector_s_weights_are_named(name: str, dtype: torch.dtype) -> None:
    module, levels = _projectors.projector(name), _projectors.features(name, dtype=dtype)
    words = f"^{type(module).__name__}{refused('features[0]', dtype)}".replace("[0]", r"\[0\]")
    if name == "stf":  # whose first operator says so
        words = f"^patch_linear: weight is torch.float32, features is {dtype}; they must share one dtype"
    with pytest.raises(TypeError, match=words):
        module(levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_features_of_the_language_model_s_width_come_in_the_attention_s_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^PerceiverProjector: features\[0\] is {dtype}, the module's weights are"):
        PerceiverProjector(12, 12)([torch.zeros(1, 4, 4, 12, dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", REFUSIONS)
def test_a_stream_or_a_level_in_another_dtype_than_a_block_s_weights_is_named(
    kind: type[nn.Module], dtype: torch.dtype
) -> None:
    module, level = kind(12, 6), LEVELS[0][:1]
    with pytest.raises(TypeError) as caught:
        module(STREAM.to(dtype), VISION_MAP, level)
    assert str(caught.value).startswith(f"{kind.__name__}{refused('hidden_states', dtype)}")
    with pytest.raises(TypeError) as caught:
        module(STREAM, VISION_MAP, level.to(dtype))
    assert str(caught.value).startswith(f"{kind.__name__}{refused('features[0]', dtype)}")


@pytest.mark.parametrize("name", _projectors.NAMES)
def test_autocast_takes_a_projector_s_features_in_half_precision_and_names_those_in_float64(name: str) -> None:
    module = _projectors.projector(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(_projectors.features(name, dtype=torch.bfloat16)).tokens.dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"torch\.float64"):
            module(_projectors.features(name, dtype=torch.float64))


@pytest.mark.parametrize("kind", REFUSIONS)
def test_autocast_takes_a_stream_and_levels_of_two_dtypes(kind: type[nn.Module]) -> None:
    module, level = kind(12, 6), LEVELS[0][:1]
    with torch.autocast("cpu", torch.bfloat16):
        assert module(STREAM.bfloat16(), VISION_MAP, level).shape == STREAM.shape
        assert module(STREAM, VISION_MAP, level.bfloat16()).shape == STREAM.shape


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
    projector = PoolProjector(6, 12)
    projector.linear_1 = Converting(6, 12)
    assert projector(LEVELS[0].bfloat16()).tokens.dtype == torch.float32
    aggregator = SpatialVisionAggregator(12, (6, 10))
    aggregator.key_projs[1][-1] = Converting(10, 1024)
    aggregator.value_projs[1][-1] = Converting(10, 1024)
    assert aggregator(STREAM, VISION_MAP, [LEVELS[0][:1], LEVELS[1][:1].bfloat16()]).shape == STREAM.shape


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


def test_tokens_that_are_no_dense_tensor_are_named() -> None:
    with pytest.raises(TypeError, match=r": query is a torch\.sparse_coo tensor; it must be a dense one"):
        cross(LocalCrossAttention)(TOKENS.to_sparse(), LEVELS)


@pytest.mark.parametrize("kind", CROSS)
def test_weights_asked_for_by_a_word_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__}: need_weights is 'x'; it must be a bool"):
        cross(kind)(TOKENS, LEVELS, need_weights="x")


@pytest.mark.parametrize("layer", [block, bidirectional])
def test_a_stream_that_is_no_tensor_is_named(layer: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r": hidden_states is a ndarray; it must be a torch.Tensor"):
        layer(STREAM.numpy())


@pytest.mark.parametrize("kind", REFUSIONS)
def test_a_map_that_is_none_is_named(kind: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__}: vision_map is None; it must be a VisionTokenMap"):
        kind(12, 6)(STREAM, None, LEVELS[0][:1])


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


# A callable, what builds it, and which of those are sizes.
BUILDS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    *((kind, {"query_dim": 12, "feature_dims": 6, "num_heads": 3}, "head_dim out_dim") for kind in CROSS),
    (DeformableCrossAttention, {"query_dim": 12, "feature_dims": 6, "num_heads": 3}, "num_points"),
    (BidirectionalTokenAttention, {"hidden_size": 12, "num_heads": 3}, "head_dim"),
    (DeepStack, {"hidden_size": 12, "feature_dims": 6}, ""),
    (SpatialVisionAggregator, {"hidden_size": 12, "feature_dims": 6}, "hidden_dim num_heads"),
    (MultiBlockTokenFusion, {"level_dims": 6}, "hidden_dim out_dim"),
    (SpatialTokenFusion, {"in_dim": 6, "out_dim": 6}, "kernel_size tokens hidden_dim"),
    (TokenAvgPool, {}, "kernel_size"),
    (TokenConcat, {}, "kernel_size"),
    (fusion_levels, {"depth": 24, "count": 8}, ""),
    (MLPProjector, {"feature_dims": 6, "hidden_size": 12}, ""),
    (PerceiverProjector, {"feature_dims": 6, "hidden_size": 12}, "num_heads"),
    (TokenPackerProjector, {"feature_dims": 6, "hidden_size": 12}, "embed_dim num_heads"),
]
SIZES = [(make, good, name) for make, good, further in BUILDS for name in [*good, *further.split()]]
NAMED = [f"{make.__name__}: {name}" for make, _, name in SIZES]


@pytest.mark.parametrize("size", ["6", 6.0, True, [6, None], 0], ids=repr)
@pytest.mark.parametrize(("make", "good", "name"), SIZES, ids=NAMED)
def test_a_size_that_is_none_is_named_when_built(
    make: Callable[..., Any], good: dict[str, Any], name: str, size: Any
) -> None:
    widths = name in ("feature_dims", "level_dims")
    words, error = "it must be an int or a sequence of one int a level" if widths else "it must be an int", TypeError
    if size == 0:
        words, error = "it must hold one positive width a level" if widths else "it must be at least 1", ValueError
    got = (0,) if widths and size == 0 else size
    with pytest.raises(error) as caught:
        make(**(good | {name: size}))
    assert str(caught.value) == f"{make.__name__}: {name} is {got!r}; {words}"


@pytest.mark.parametrize("level", ["0", 1.0, True, None], ids=repr)
def test_a_level_that_is_no_number_is_named(level: Any) -> None:
    with pytest.raises(ValueError, match=f"^DeepStack: level is {level!r}; it must be in "):
        DeepStack(12, (6, 10), level=level)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DeformableProjector(6, 12, num_heads="2"), "^DeformableCrossAttention: num_heads is '2'; it must be"),
        (lambda: STFProjector(6, 12, tokens=1.0), "^SpatialTokenFusion: tokens is 1.0; it must be an int"),
    ],
)
def test_a_projector_s_module_names_the_size_that_it_is_given(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("number", ["x", None, True, 0, -1.0, float("inf"), float("nan"), 10**400], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (BidirectionalTokenAttention, "norm_eps"),
        (BidirectionalTokenAttention, "rope_theta"),
        (PixelShuffleProjector, "norm_eps"),
    ],
)
def test_an_epsilon_or_a_base_that_is_no_positive_number_is_named(
    kind: Callable[..., Any], name: str, number: Any
) -> None:
    if (name, number) == ("rope_theta", None):
        return  # no positions
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {name} is {number!r}; it must be a positive number"):
        kind(12, 3, **{name: number})


@pytest.mark.parametrize("kind", [TokenAvgPool, TokenConcat])
@pytest.mark.parametrize(("features", "got"), [(None, "None"), (LEVELS[0].numpy(), "a ndarray")], ids=["None", "numpy"])
def test_a_grid_that_is_no_tensor_is_named(kind: Callable[[], nn.Module], features: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f": features is {got}; it must be a torch.Tensor"):
        kind()(features)
