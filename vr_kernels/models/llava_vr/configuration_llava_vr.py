"""``LlavaVRConfig``: LLaVA-NeXT with a projector that compresses and Vision Remember that gives the detail back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaNextConfig, PreTrainedConfig

from vr_kernels.compression.projectors import PROJECTORS, Projector, build_projector
from vr_kernels.integrations.vision_remember.hooks import check_layers
from vr_kernels.nn import VisionRememberConfig

NAME = "LlavaVRConfig"

# (rows, columns) of tiles that AnyRes may choose of where nothing else is said: LLaVA-NeXT's.
CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))

# Of configurations of other types: what names the type, and how LLaVA-OneVision packs, which interpolates features.
FOREIGN = ("model_type", "architectures", "transformers_version", "vision_aspect_ratio", "video_token_index")

# What transformers and this class raise at fields of a wrong type or depth, beside a ValueError.
UNFIT = (StrictDataclassError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)

# What each version of the paper has, in fields of the config; every other choice is VisionRememberConfig's default.
PRESETS: dict[str, dict[str, Any]] = {
    "v1": {
        "vr_levels": [13, 18, 23],
        "vr_window": [2, 2],
        "vr_bidirectional": False,
        "vr_text_guided": False,
        "vr_saliency": "value",
    },
    "v2": {"vr_levels": [7, 15, 23], "vr_window": [3, 3]},
}


@strict
class LlavaVRConfig(LlavaNextConfig):
    """The configuration of a ``LlavaVRModel``.

    Everything of ``LlavaNextConfig``, and:

    Args:
        projector_type: a key of ``vr_kernels.compression.projectors.PROJECTORS``: "pool" compresses, "mlp" does not.
        projector_options: further arguments of that class.
        vr_window: [s_h, s_w], the features that one vision token stands for.
        vr_layers: decoder layers, counted from 1, that have a ``VisionRemember`` block; [] is the baseline.
        vr_position: whether blocks stand "after" those layers (v2, §3.1) or "before" them (v1, §5.1).
        vr_levels: the encoder's hidden_states that the blocks read (0 the embeddings, k the output of block k).
        vr_interaction: "local", "global" or "deformable".
        vr_bidirectional: whether blocks have the bidirectional layer. vr_text_guided: whether the prompt's text guides
            it.
        vr_saliency: "none", "value" or "feature": from the CLS row, or where the encoder has none from the attention
            that its patches receive, which is 1/N on average over N patches, not about 0.5, and so all but switches
            the cross-attention off. vr_saliency_level: whose block it is taken from; None: the deepest of vr_levels.
        vr_options: any other field of ``VisionRememberConfig``.

    ``vision_feature_layer`` says which levels the projector reads, with the number that it reads by default where the
    method fuses several. ``vision_feature_select_strategy`` is not read: a CLS row is never a token.
    ``image_grid_pinpoints`` are multiples of the tower's size; None: up to four tiles, or three in a row, as in
    LLaVA-NeXT. [] is a model without AnyRes: one tile an image, no newline.

    Raises:
        ValueError: what does not fit, before a weight is made.

    >>> config = LlavaVRConfig.preset("v2")
    >>> config.token_grid, config.vision_remember.layers
    ((8, 8), ('cross_attention', 'bidirectional'))
    """

    model_type = "llava_vr"
    image_grid_pinpoints: list[Any] | None = None
    vision_feature_layer: int | list[int] = -2

    projector_type: str = "pool"
    projector_options: dict[str, Any] | None = None
    vr_window: list[int] | tuple[int, int] = (3, 3)
    vr_layers: list[int] | tuple[int, ...] = (1, 4)
    vr_position: str = "after"
    vr_levels: list[int] | tuple[int, ...] = (7, 15, 23)
    vr_interaction: str = "local"
    vr_bidirectional: bool = True
    vr_text_guided: bool = True
    vr_saliency: str = "none"
    vr_saliency_level: int | None = None
    vr_options: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        no_pinpoints = self.image_grid_pinpoints is None
        super().__post_init__(**kwargs)
        if no_pinpoints:
            self.image_grid_pinpoints = [
                [rows * self.vision_config.image_size, columns * self.vision_config.image_size]
                for rows, columns in CANVASES
            ]
        self._check_types(kwargs)
        if self.projector_type not in PROJECTORS:
            self._refuse("projector_type", "one of " + ", ".join(map(repr, PROJECTORS)))
        if PROJECTORS[self.projector_type].reads_levels and isinstance(self.vision_feature_layer, int):
            projector, depth = PROJECTORS[self.projector_type], self.vision_config.num_hidden_layers
            self.vision_feature_layer = list(projector.default_levels(depth, **(self.projector_options or {})))
        self._check_llava_next()
        check_layers(NAME, self.vr_layers, self.text_config.num_hidden_layers, self.vr_position, prefix="vr_")
        _ = self.token_grid, self.projector_levels  # each refuses what does not fit
        if self.vr_layers:  # else nobody reads vr_levels, whose default is that of 24 blocks
            self.vr_levels = [self._level("vr_levels", level) for level in self.vr_levels]
            self._check_blocks()

    def _check_types(self, unknown: Mapping[str, Any]) -> None:
        """Refuse fields that are not lists or dictionaries where they must be, and names that no field has."""
        for name in unknown:
            if name.startswith("vr_"):
                known = [field.name for field in dataclasses.fields(self) if field.name.startswith("vr_")]
                raise ValueError(f"{NAME}: {name!r} is no field; it must be one of {', '.join(known)}")
        for name in ("vr_window", "vr_layers", "vr_levels"):
            if not _are_integers(getattr(self, name)):
                self._refuse(name, "a list of integers")
            setattr(self, name, list(getattr(self, name)))
        if len(self.vr_window) != 2 or min(self.vr_window) < 1:
            self._refuse("vr_window", "two integers [s_h, s_w] of at least 1")
        for name in ("projector_options", "vr_options"):
            options = getattr(self, name)
            if options is not None and not isinstance(options, Mapping):
                self._refuse(name, "a dictionary or None")
            setattr(self, name, dict(options or {}))
        for name in ("vr_bidirectional", "vr_text_guided"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        layer = self.vision_feature_layer
        if not _are_integers([layer] if isinstance(layer, int) else layer):
            self._refuse("vision_feature_layer", "an integer or a list of integers")

    def _check_llava_next(self) -> None:
        """Refuse what LLaVA-NeXT offers and no projector here does."""
        if self.projector_hidden_act != "gelu":
            self._refuse("projector_hidden_act", "'gelu'")
        if not self.multimodal_projector_bias:
            self._refuse("multimodal_projector_bias", "True")
        tile = self.vision_config.image_size
        for canvas in self.image_grid_pinpoints or []:
            if not _are_integers(canvas) or len(canvas) != 2 or any(side < tile or side % tile != 0 for side in canvas):
                self._refuse("image_grid_pinpoints", f"pairs (height, width) of multiples of the tower's {tile} pixels")

    def _check_blocks(self) -> None:
        if not self.vr_levels or len(set(self.vr_levels)) != len(self.vr_levels):
            self._refuse("vr_levels", "at least one of the encoder's hidden_states, and none twice")
        if self.vision_remember.saliency != "none" and self.saliency_level == 0:
            self._refuse("vr_saliency_level", "the number of a block, from 1, or None with a level above 0")
        if self.tokens_per_cell != 1:
            self._refuse("projector_options", "such that a cell has one token, where there are vr_layers")

    @property
    def vision_remember(self) -> VisionRememberConfig:
        """What each block is built from."""
        options: dict[str, Any] = {
            "hidden_size": self.text_config.hidden_size,
            "num_attention_heads": self.text_config.num_attention_heads,
            "feature_dims": [self.vision_config.hidden_size] * len(self.vr_levels),
            "interaction": self.vr_interaction,
            "layers": ["cross_attention", "bidirectional"] if self.vr_bidirectional else ["cross_attention"],
            "text_guide": "max" if self.vr_bidirectional and self.vr_text_guided else "none",
            "saliency": self.vr_saliency,
            "norm_eps": getattr(self.text_config, "rms_norm_eps", 1e-6),
        }
        return VisionRememberConfig.from_dict(options | (self.vr_options or {}))

    @property
    def projector_levels(self) -> list[int]:
        """The encoder's hidden_states that the projector reads."""
        layer = self.vision_feature_layer
        return [self._level("vision_feature_layer", level) for level in ([layer] if isinstance(layer, int) else layer)]

    @property
    def captured_levels(self) -> list[int]:
        """All hidden_states that anything reads, each once."""
        return sorted({*self.projector_levels, *(self.vr_levels if self.vr_layers else [])})

    @property
    def saliency(self) -> str | None:
        """What ``capture_features`` makes it of."""
        if self.vr_saliency == "none":
            return None
        return "cls" if is_clip(self.vision_config) else "received"

    @property
    def saliency_level(self) -> int | None:
        if not self.vr_layers:
            return None
        if self.vr_saliency_level is None:
            return max(self.vr_levels)
        return self._level("vr_saliency_level", self.vr_saliency_level)

    @property
    def feature_grid(self) -> tuple[int, int]:
        """(H, W) patches of a tile."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def token_grid(self) -> tuple[int, int]:
        """(n_h, n_w) cells of a tile, after the projector."""
        projector: Projector = self.projector(device="meta")
        return projector.output_grid(*self.feature_grid)

    @property
    def tokens_per_cell(self) -> int:
        return self.projector(device="meta").tokens_per_cell

    def projector(self, **factory: Any) -> Projector:
        """The projector, newly initialised."""
        return build_projector(
            self.projector_type,
            feature_dims=[self.vision_config.hidden_size] * len(self.projector_levels),
            hidden_size=self.text_config.hidden_size,
            window=(self.vr_window[0], self.vr_window[1]),
            **(self.projector_options or {}),
            **factory,
        )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LlavaVRConfig:
        """The model of a paper, "v1" (CLIP-L/14-336, 144 tokens a tile) or "v2" (SigLIP-L/16-384, 64 tokens a tile), on
        Qwen2-0.5B; ``vision_config`` and ``text_config`` among the changes are for other sizes."""
        from transformers import CLIPVisionConfig, Qwen2Config, SiglipVisionConfig

        if name not in PRESETS:
            raise ValueError(f"{NAME}: preset is {name!r}; it must be {' or '.join(map(repr, PRESETS))}")
        large: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        large |= {"num_hidden_layers": 24}
        towers: dict[str, PreTrainedConfig] = {
            "v1": CLIPVisionConfig(image_size=336, patch_size=14, **large),
            "v2": SiglipVisionConfig(image_size=384, patch_size=16, **large),
        }
        side = towers[name].image_size
        defaults: dict[str, Any] = {
            "vision_config": towers[name],
            "text_config": Qwen2Config(
                vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
            ),
            "image_token_index": 151646,
            "tie_word_embeddings": True,
            "vision_feature_select_strategy": "default" if name == "v1" else "full",
            "image_grid_pinpoints": [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
        }  # fmt: skip
        return cls(**(defaults | PRESETS[name] | changes))

    @classmethod
    def from_llava_next(cls, config: LlavaNextConfig | Mapping[str, Any], **changes: Any) -> LlavaVRConfig:
        """The configuration of a LLaVA-NeXT model, with the fields of this one added."""
        return cls(**(_of_another_type(config if isinstance(config, Mapping) else config.to_dict()) | changes))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As every configuration of transformers; but fields among ``kwargs`` are checked together with the others, and
        a dictionary of LLaVA-NeXT or LLaVA-OneVision gets the fields that it lacks.

        Raises ValueError for whatever makes no configuration, transformers' own errors among it."""
        if not isinstance(config_dict, Mapping):
            raise ValueError(
                f"{NAME}: config_dict is a {type(config_dict).__name__}; it must be a dictionary of fields"
            )
        if config_dict.get("model_type") != cls.model_type:
            config_dict = _of_another_type(config_dict)
        own = {field.name for field in dataclasses.fields(cls)} - set(cls.sub_configs)
        own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
        fields = {name: kwargs.pop(name) for name in own & set(kwargs)}
        try:
            return super().from_dict(config_dict | fields, **kwargs)
        except UNFIT as reason:
            raise ValueError(f"{NAME}: these fields make no configuration: {' '.join(str(reason).split())}") from reason

    def _level(self, name: str, level: int) -> int:
        """None negative."""
        depth: int = self.vision_config.num_hidden_layers
        if not -depth - 1 <= level <= depth:
            raise ValueError(f"{NAME}: {name} has {level}; an encoder of {depth} blocks has hidden_states 0 to {depth}")
        return level % (depth + 1)

    def _refuse(self, name: str, allowed: str) -> None:
        raise ValueError(f"{NAME}: {name} is {getattr(self, name)!r}; it must be {allowed}")


def is_clip(vision_config: PreTrainedConfig) -> bool:
    """Whether a tower is CLIP's or made after it (MetaCLIP, Chinese-CLIP): it has a CLS row, and CLIP's pixels."""
    return "clip" in vision_config.model_type


def _are_integers(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) is int for value in values)


def _of_another_type(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of another LLaVA's configuration that mean something here."""
    return {name: value for name, value in values.items() if name not in FOREIGN}
