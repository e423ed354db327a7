"""``VisionRememberConfig``: every choice that a ``VisionRemember`` block is built from, checked when it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from vr_kernels.nn._sizes import check_type, is_positive_number
from vr_kernels.ops._arguments import Arguments

CHOICES: dict[str, tuple[Any, ...]] = {
    "layers": (
        ("cross_attention", "bidirectional"),
        ("bidirectional", "cross_attention"),
        ("cross_attention",),
        ("bidirectional",),
    ),
    "interaction": ("local", "global", "deformable"),
    "expansion": ("linear", "mlp"),
    "query_norm": ("rms", "layer", "none"),
    "feature_norm": ("level", "all", "none"),
    "window_position": ("none", "learned"),
    "ragged_windows": ("adaptive", "reject"),
    "saliency": ("none", "value", "feature"),
    "residual": ("zero", "normal", "gate"),
    "text_guide": ("max", "mean", "none"),
    "bidirectional_norm": ("rms", "layer", "none"),
}

# Without num_heads and head_dim: heads of this width, but of the deformable interaction this number.
DEFAULT_HEADS = {"local": 128, "global": 128, "deformable": 8}

# What the two versions of the paper change of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "v1": {"layers": ("cross_attention",), "window": (2, 2), "saliency": "value", "text_guide": "none"},
    "v2": {"window": (3, 3)},
}


@dataclass(frozen=True, kw_only=True)
class VisionRememberConfig:
    """The choices of a ``VisionRemember`` block; the defaults are those of v2, where the papers leave one open the
    library's own.

    Args:
        hidden_size: D, width of the language model. num_attention_heads: its heads; the bidirectional layer needs it.
        feature_dims: width D_l of each encoder level, in the order in which the block gets them.
        layers: "cross_attention" and "bidirectional", in the order in which they run, or one of them alone.
        interaction: "local" (each token its window), "global" (its whole tile) or "deformable" (sampled points).
        literal: attention without projections, v2's Eq. 2 as printed: one head over all channels.
        expansion: D -> C by a "linear" map, or by an "mlp", Linear-GELU-Linear.
        query_norm: "rms", "layer" or "none", before the expansion. norm_eps: of the norms in width D.
        feature_norm: LayerNorm of each "level", over "all" channels, or "none".
        num_heads, head_dim: of the cross-attention. With neither, heads of width 128 (deformable: 8 heads); with one,
            the other is what fills C.
        bias: biases on every Linear of the cross-attention layer.
        window: (s_h, s_w) features a window. It is needed by a learned position, and checked if it is given.
        window_position: "learned" adds a bias to the scores, one a head and place in the window.
        ragged_windows: a grid that does not divide has windows as "adaptive" pooling, or is an error ("reject").
        saliency: multiplies the "value" after its projection (v1's Eq. 3), the "feature" before it, or there is
            "none". forward needs a saliency map exactly if there is one.
        residual: how the update of the stream starts: at "zero", by a last Linear that is zero; "normal", that Linear
            initialised as every other; or behind a "gate", normal times tanh of a learned number that starts at zero
            (in the bidirectional layer as "zero").
        text_guide: "max" or "mean" of the prompt, as one more key of the bidirectional layer; "none".
        bidirectional_norm: as query_norm. bidirectional_head_dim: None is hidden_size / num_attention_heads.
        bidirectional_bias: biases on its projections. bidirectional_rope_theta: base of a rotary position embedding in
            it, the language model's; None: no positions.
        newline_keys: the bidirectional layer's tokens attend to their image's newline tokens too.

    Raises:
        ValueError: a value that is not allowed, alone or beside another; an unknown name.

    >>> VisionRememberConfig.preset("v1", hidden_size=1536, num_attention_heads=12).saliency
    'value'
    """

    hidden_size: int
    num_attention_heads: int | None = None
    feature_dims: tuple[int, ...] = (1024, 1024, 1024)
    layers: tuple[str, ...] = ("cross_attention", "bidirectional")
    interaction: str = "local"
    literal: bool = False
    expansion: str = "linear"
    query_norm: str = "rms"
    norm_eps: float = 1e-6
    feature_norm: str = "level"
    num_heads: int | None = None
    head_dim: int | None = None
    bias: bool = False
    window: tuple[int, int] | None = None
    window_position: str = "none"
    ragged_windows: str = "adaptive"
    saliency: str = "none"
    residual: str = "zero"
    text_guide: str = "max"
    bidirectional_norm: str = "rms"
    bidirectional_head_dim: int | None = None
    bidirectional_bias: bool = False
    bidirectional_rope_theta: float | None = None
    newline_keys: bool = False

    def __post_init__(self) -> None:
        for name in ("feature_dims", "layers", "window"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("hidden_size", "num_attention_heads", "num_heads", "head_dim", "bidirectional_head_dim"):
            value, optional = getattr(self, name), name != "hidden_size"
            if not (_positive(value) or (optional and value is None)):
                self._refuse(name, "a positive integer" + " or None" * optional)
        if not (isinstance(self.feature_dims, tuple) and self.feature_dims and all(map(_positive, self.feature_dims))):
            self._refuse("feature_dims", "a tuple of one positive integer a level")
        if self.window is not None and not (
            isinstance(self.window, tuple) and len(self.window) == 2 and all(map(_positive, self.window))
        ):
            self._refuse("window", "None or two positive integers (s_h, s_w)")
        for name in ("literal", "bias", "bidirectional_bias", "newline_keys"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        if not is_positive_number(self.norm_eps):
            self._refuse("norm_eps", "a positive number")
        if self.bidirectional_rope_theta is not None and not is_positive_number(self.bidirectional_rope_theta):
            self._refuse("bidirectional_rope_theta", "a positive number or None")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                self._refuse(name, " or ".join(map(repr, allowed)))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if "bidirectional" in self.layers:
            if self.num_attention_heads is None:
                self._refuse("num_attention_heads", "a positive integer where there is a bidirectional layer")
            if self.bidirectional_head_dim is None and self.hidden_size % self.num_attention_heads != 0:
                self._refuse(
                    "num_attention_heads",
                    f"a divisor of hidden_size {self.hidden_size}, or bidirectional_head_dim must be given",
                )
            head_dim = self.bidirectional_head_dim or self.hidden_size // self.num_attention_heads
            if self.bidirectional_rope_theta is not None and head_dim % 2 != 0:
                self._refuse("bidirectional_rope_theta", f"None where the head width, {head_dim}, is odd")
        else:
            if self.bidirectional_rope_theta is not None:
                self._refuse("bidirectional_rope_theta", "None where there is no bidirectional layer")
            if self.newline_keys:
                self._refuse("newline_keys", "False where there is no bidirectional layer")
        if self.literal and (self.interaction, self.num_heads, self.head_dim) != ("local", None, None):
            self._refuse("literal", "False where interaction is not 'local', or where num_heads or head_dim is given")
        channels = sum(self.feature_dims)
        for name, value in (("num_heads", self.num_heads), ("head_dim", self.head_dim)):
            if value is not None and None in (self.num_heads, self.head_dim) and channels % value != 0:
                self._refuse(
                    name, f"a divisor of the levels' {channels} channels, or both num_heads and head_dim given"
                )
        default = DEFAULT_HEADS[self.interaction]
        if not self.literal and (self.num_heads, self.head_dim) == (None, None) and channels % default != 0:
            self._refuse(
                "num_heads", f"given, or head_dim: the levels' {channels} channels are no multiple of {default}"
            )
        if self.interaction == "deformable" and self.feature_norm == "all":
            self._refuse("feature_norm", "'level' or 'none' where interaction is 'deformable', which joins no levels")
        if self.window_position == "learned" and (self.window is None or self.interaction != "local"):
            self._refuse("window_position", "'none' where window is None or interaction is not 'local'")

    @property
    def heads(self) -> tuple[int, int]:
        """(h, d) of the cross-attention: what is not given fills C."""
        if self.literal:
            return 1, sum(self.feature_dims)
        num_heads, head_dim = self.num_heads, self.head_dim
        if num_heads is None and head_dim is None:
            default = DEFAULT_HEADS[self.interaction]
            num_heads, head_dim = (default, None) if self.interaction == "deformable" else (None, default)
        channels = sum(self.feature_dims)
        num_heads = channels // (head_dim or 1) if num_heads is None else num_heads
        return num_heads, channels // num_heads if head_dim is None else head_dim

    def _refuse(self, name: str, allowed: str) -> NoReturn:
        raise ValueError(f"VisionRememberConfig: {name} is {getattr(self, name)!r}; it must be {allowed}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> VisionRememberConfig:
        """The configuration of a paper, "v1" or "v2", with ``changes``; without a hidden_size in Qwen2-0.5B."""
        Arguments("VisionRememberConfig").choice("preset", name, tuple(PRESETS))
        model = {} if "hidden_size" in changes else {"hidden_size": 896, "num_attention_heads": 14}
        return cls.from_dict(model | PRESETS[name] | changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields in types that JSON has."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VisionRememberConfig:
        """The inverse of ``to_dict``; a missing field has its default."""
        if not isinstance(values, Mapping):
            raise ValueError(f"VisionRememberConfig: values is {values!r}; it must be a mapping of fields")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(f"VisionRememberConfig: {name!r} is no field; it must be one of {', '.join(names)}")
        if "hidden_size" not in values:
            raise ValueError("VisionRememberConfig: hidden_size is missing; it must be a positive integer")
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> VisionRememberConfig:
        """The inverse of ``to_json``.

        Raises:
            ValueError: no JSON; what ``from_dict`` refuses. TypeError: no text.
        """
        if not isinstance(text, (bytes, bytearray)):  # which json reads too
            check_type("VisionRememberConfig", "text", text, str)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise ValueError(f"VisionRememberConfig: the text is not JSON: {reason}") from None
        return cls.from_dict(values)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
