"""``VisionRememberConfig``: defaults, presets, round trips, and what it refuses."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from vr_kernels import VisionRememberConfig

SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "feature_dims": (128, 256)}


def test_defaults_are_those_of_the_second_paper() -> None:
    config = VisionRememberConfig(hidden_size=896, num_attention_heads=14)
    assert config.to_dict() == {
        "hidden_size": 896,
        "num_attention_heads": 14,
        "feature_dims": [1024, 1024, 1024],
        "layers": ["cross_attention", "bidirectional"],
        "interaction": "local",
        "literal": False,
        "expansion": "linear",
        "query_norm": "rms",
        "norm_eps": 1e-6,
        "feature_norm": "level",
        "num_heads": None,
        "head_dim": None,
        "bias": False,
        "window": None,
        "window_position": "none",
        "ragged_windows": "adaptive",
        "saliency": "none",
        "residual": "zero",
        "text_guide": "max",
        "bidirectional_norm": "rms",
        "bidirectional_head_dim": None,
        "bidirectional_bias": False,
        "bidirectional_rope_theta": None,
        "newline_keys": False,
    }
    assert config.heads == (24, 128)


def test_presets_are_the_papers() -> None:
    v1, v2 = VisionRememberConfig.preset("v1"), VisionRememberConfig.preset("v2")
    assert (v1.layers, v1.saliency, v1.window, v1.text_guide) == (("cross_attention",), "value", (2, 2), "none")
    assert v2 == VisionRememberConfig(hidden_size=896, num_attention_heads=14, window=(3, 3))
    other = VisionRememberConfig.preset("v2", window=None, hidden_size=1536, num_attention_heads=12)
    assert (other.window, other.hidden_size, other.num_attention_heads) == (None, 1536, 12)


def test_a_preset_in_another_model_does_not_keep_the_first_ones_heads() -> None:
    with pytest.raises(ValueError, match="num_attention_heads is None"):
        VisionRememberConfig.preset("v2", hidden_size=3584)


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, (3, 128)),
        ({"num_heads": 6}, (6, 64)),
        ({"head_dim": 32}, (12, 32)),
        ({"num_heads": 5, "head_dim": 7}, (5, 7)),
        ({"interaction": "deformable"}, (8, 48)),
        ({"literal": True}, (1, 384)),
    ],
)
def test_heads_fill_the_channels(options: dict[str, Any], heads: tuple[int, int]) -> None:
    assert VisionRememberConfig(**(SMALL | options)).heads == heads


OTHER: dict[str, Any] = {
    "hidden_size": 128, "num_attention_heads": 8, "feature_dims": (384,), "layers": ("bidirectional",),
    "interaction": "global", "literal": True, "expansion": "mlp", "query_norm": "none", "norm_eps": 1e-5,
    "feature_norm": "all", "num_heads": 2, "head_dim": 64, "bias": True, "window": (2, 3),
    "window_position": "learned", "ragged_windows": "reject", "saliency": "feature", "residual": "gate",
    "text_guide": "none", "bidirectional_norm": "layer", "bidirectional_head_dim": 8, "bidirectional_bias": True,
    "bidirectional_rope_theta": 1e4, "newline_keys": True,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_every_field_survives_a_round_trip(name: str, value: Any) -> None:
    beside = {"window": (3, 3)} if name == "window_position" else {}
    config = VisionRememberConfig(**(SMALL | beside | {name: value}))
    assert getattr(config, name) == value != getattr(VisionRememberConfig(**SMALL), name)
    for copy in (
        VisionRememberConfig.from_json(config.to_json()),
        VisionRememberConfig.from_dict(config.to_dict()),
        pickle.loads(pickle.dumps(config)),
    ):
        assert copy == config
        assert hash(copy) == hash(config)


def test_every_field_is_tested() -> None:
    assert OTHER.keys() == {field.name for field in dataclasses.fields(VisionRememberConfig)}


def test_it_is_frozen() -> None:
    config = VisionRememberConfig(**SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bias = True  # type: ignore[misc]


REFUSALS: dict[str, dict[str, Any]] = {
    "hidden_size is 0; it must be a positive integer": {"hidden_size": 0},
    "hidden_size is True; it must be a positive integer": {"hidden_size": True},
    "hidden_size is None; it must be a positive integer": {"hidden_size": None},
    "num_heads is -1; it must be a positive integer or None": {"num_heads": -1},
    "head_dim is 2.0; it must be a positive integer or None": {"head_dim": 2.0},
    "feature_dims is (); it must be a tuple of one positive integer a level": {"feature_dims": ()},
    "feature_dims is 8; it must be a tuple of one positive integer a level": {"feature_dims": 8},
    "feature_dims is (8, 0); it must be a tuple of one positive integer a level": {"feature_dims": [8, 0]},
    "window is (3,); it must be None or two positive integers (s_h, s_w)": {"window": (3,)},
    "window is 3; it must be None or two positive integers (s_h, s_w)": {"window": 3},
    "bias is 1; it must be True or False": {"bias": 1},
    "literal is 'no'; it must be True or False": {"literal": "no"},
    "norm_eps is 0; it must be a positive number": {"norm_eps": 0},
    "norm_eps is nan; it must be a positive number": {"norm_eps": float("nan")},
    "norm_eps is '1e-6'; it must be a positive number": {"norm_eps": "1e-6"},
    "newline_keys is None; it must be True or False": {"newline_keys": None},
    "bidirectional_rope_theta is -1.0; it must be a positive number or None": {"bidirectional_rope_theta": -1.0},
    "bidirectional_rope_theta is '1e4'; it must be a positive number or None": {"bidirectional_rope_theta": "1e4"},
    "bidirectional_rope_theta is 10000.0; it must be None where the head width, 5, is odd": {
        "bidirectional_rope_theta": 1e4,
        "bidirectional_head_dim": 5,
    },
    "bidirectional_rope_theta is 10000.0; it must be None where there is no bidirectional layer": {
        "bidirectional_rope_theta": 1e4,
        "layers": ("cross_attention",),
    },
    "newline_keys is True; it must be False where there is no bidirectional layer": {
        "newline_keys": True,
        "layers": ("cross_attention",),
    },
    "layers is 'bidirectional'; it must be ('cross_attention', 'bidirectional') or ('bidirectional', "
    "'cross_attention') or ('cross_attention',) or ('bidirectional',)": {"layers": "bidirectional"},
    "interaction is 'window'; it must be 'local' or 'global' or 'deformable'": {"interaction": "window"},
    "expansion is None; it must be 'linear' or 'mlp'": {"expansion": None},
    "query_norm is 'rmsnorm'; it must be 'rms' or 'layer' or 'none'": {"query_norm": "rmsnorm"},
    "feature_norm is True; it must be 'level' or 'all' or 'none'": {"feature_norm": True},
    "saliency is 'values'; it must be 'none' or 'value' or 'feature'": {"saliency": "values"},
    "residual is 'tanh'; it must be 'zero' or 'normal' or 'gate'": {"residual": "tanh"},
    "text_guide is 'sum'; it must be 'max' or 'mean' or 'none'": {"text_guide": "sum"},
    "num_attention_heads is None; it must be a positive integer where there is a bidirectional layer": {
        "num_attention_heads": None
    },
    "num_attention_heads is 5; it must be a divisor of hidden_size 64, or bidirectional_head_dim must be given": {
        "num_attention_heads": 5
    },
    "num_heads is 5; it must be a divisor of the levels' 384 channels, or both num_heads and head_dim given": {
        "num_heads": 5
    },
    "num_heads is None; it must be given, or head_dim: the levels' 200 channels are no multiple of 128": {
        "feature_dims": (200,)
    },
    "literal is True; it must be False where interaction is not 'local', or where num_heads or head_dim is given": {
        "literal": True,
        "interaction": "global",
    },
    "feature_norm is 'all'; it must be 'level' or 'none' where interaction is 'deformable', which joins no levels": {
        "feature_norm": "all",
        "interaction": "deformable",
    },
    "window_position is 'learned'; it must be 'none' where window is None or interaction is not 'local'": {
        "window_position": "learned"
    },
}


@pytest.mark.parametrize(("words", "fault"), REFUSALS.items(), ids=REFUSALS.keys())
def test_values_that_are_not_allowed_are_refused(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        VisionRememberConfig(**(SMALL | fault))
    assert str(caught.value) == f"VisionRememberConfig: {words}"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'vr_window' is no field; it must be one of hidden_size, num_attention_heads,"
    ):
        VisionRememberConfig.from_dict(SMALL | {"vr_window": 3})
    with pytest.raises(ValueError, match="hidden_size is missing; it must be a positive integer"):
        VisionRememberConfig.from_dict({"bias": True})
    with pytest.raises(ValueError, match='preset is \'v3\'; it must be "v1" or "v2"'):
        VisionRememberConfig.preset("v3")


def test_names_and_texts_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match=r"^VisionRememberConfig: preset is \['v1'\]; it must be \"v1\" or \"v2\"$"):
        VisionRememberConfig.preset(["v1"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^VisionRememberConfig: text is None; it must be a str$"):
        VisionRememberConfig.from_json(None)  # type: ignore[arg-type]
    config = VisionRememberConfig(**SMALL)
    assert VisionRememberConfig.from_json(config.to_json().encode()) == config  # type: ignore[arg-type]
