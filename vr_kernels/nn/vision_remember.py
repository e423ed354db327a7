"""``VisionRemember``: the block between two decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vr_kernels.nn._map_inputs import check_stream, newline_rows_of
from vr_kernels.nn._sizes import check_type
from vr_kernels.nn.bidirectional_token_attention import BidirectionalTokenAttention
from vr_kernels.nn.token_feature_cross_attention import TokenFeatureCrossAttention
from vr_kernels.nn.vision_remember_config import VisionRememberConfig
from vr_kernels.nn.vision_token_map import VisionTokenMap


class VisionRemember(nn.Module):
    """Vision Remember between two decoder layers (v1, §4.3; v2, §3): the vision tokens read the encoder's features
    again, and then each other and the prompt. All other rows of the stream pass through bit for bit.

    A block starts as the identity, bit for bit where all it reads is finite, unless config.residual is "normal". It
    belongs in the prefill alone: a decoding step has no vision token. A batch without an image runs through every
    parameter with no row to change, so that each has a gradient, of zero: data-parallel training needs no parameter
    left out.

    After building it on the meta device and ``to_empty``, call ``reset_parameters`` of the block itself, last: those of
    its Linears know nothing of a start at zero.

    Args:
        config: every choice; see ``VisionRememberConfig`` and its presets "v1" and "v2".
        backend: of the windowed attention, as ``LocalCrossAttention`` takes it.

    Raises:
        TypeError: a config that is no ``VisionRememberConfig``.

    >>> block = VisionRemember(VisionRememberConfig.preset("v1", hidden_size=64, feature_dims=(128, 128)))
    >>> image_mask = torch.tensor([[False, True, True, True, True, False]])
    >>> vision_map = VisionTokenMap.from_grid(image_mask, grid=(2, 2), feature_grid=(4, 4))
    >>> levels, saliency = [torch.randn(1, 4, 4, 128) for _ in range(2)], torch.rand(1, 4, 4)
    >>> hidden_states = torch.randn(1, 6, 64)
    >>> torch.equal(block(hidden_states, vision_map, levels, saliency=saliency), hidden_states)  # so far
    True
    """

    cross_attention: TokenFeatureCrossAttention | None
    bidirectional: BidirectionalTokenAttention | None

    def __init__(
        self,
        config: VisionRememberConfig,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_type("VisionRemember", "config", config, VisionRememberConfig)
        self.config = config
        self.cross_attention = self.bidirectional = None
        if "cross_attention" in config.layers:
            self.cross_attention = TokenFeatureCrossAttention(config, backend=backend, device=device, dtype=dtype)
        if "bidirectional" in config.layers:
            assert config.num_attention_heads is not None
            self.bidirectional = BidirectionalTokenAttention(
                config.hidden_size,
                config.num_attention_heads,
                head_dim=config.bidirectional_head_dim,
                norm=None if config.bidirectional_norm == "none" else config.bidirectional_norm,
                norm_eps=config.norm_eps,
                bias=config.bidirectional_bias,
                guide=None if config.text_guide == "none" else config.text_guide,
                rope_theta=config.bidirectional_rope_theta,
                zero_init=config.residual != "normal",
                device=device,
                dtype=dtype,
            )

    def reset_parameters(self) -> None:
        """As the two layers do themselves."""
        for layer in (self.cross_attention, self.bidirectional):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self,
        hidden_states: Tensor,
        vision_map: VisionTokenMap,
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        saliency: Tensor | None = None,
        text_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Refresh the vision tokens of the stream.

        Args:
            hidden_states: (B, T, D); never written.
            vision_map: made for this B, T and these features.
            features: one tensor a level, (tiles, H, W, D_l) or (M, D_l), any strides; None where there is no image, or
                no cross-attention.
            saliency: (tiles, H, W) or (M,), exactly if config.saliency is not "none".
            text_mask: (B, T) bool, the **prompt's** text: no padding, no vision token, no newline, and nothing from the
                first supervised token on, for the answer pooled into the prefix is a leaked label. None, or a row
                without text, is no guide (the alignment phase has no prompt).
            position_ids: (B, T) or (1, T), the language model's; only where config.bidirectional_rope_theta is given,
                and there None is the slot's own number t.

        Returns:
            (B, T, D), a new tensor in the dtype of hidden_states.

        Raises:
            ValueError: what does not fit the map or the config.
            TypeError: what is no tensor or no ``VisionTokenMap``; a stream in another dtype than the weights, or
                features in another than the stream (autocast converts them); a saliency, text_mask or position_ids in
                a dtype that they may not have.
        """
        config = self.config
        check_stream("VisionRemember", hidden_states, vision_map, config.hidden_size)
        if text_mask is not None and (self.bidirectional is None or config.text_guide == "none"):
            raise ValueError(
                f"VisionRemember: text_mask is given, config.text_guide is {config.text_guide!r} and config.layers "
                f"{config.layers}; only the guide of a bidirectional layer, 'max' or 'mean', reads it"
            )
        if self.cross_attention is None and (features is not None or saliency is not None):
            given = "saliency is" if features is None else "features are"
            raise ValueError(
                f"VisionRemember: {given} given, and config.layers is {config.layers}; a cross-attention alone reads "
                "either"
            )
        if position_ids is not None and config.bidirectional_rope_theta is None:
            raise ValueError(
                "VisionRemember: position_ids is given and config.bidirectional_rope_theta is None; nothing reads them"
            )
        for name in config.layers:
            if name == "cross_attention":
                assert self.cross_attention is not None
                hidden_states = self.cross_attention(hidden_states, vision_map, features, saliency=saliency)
            else:
                assert self.bidirectional is not None
                hidden_states = self.bidirectional(
                    hidden_states,
                    vision_map.token_rows,
                    key_rows=newline_rows_of("VisionRemember", vision_map) if config.newline_keys else None,
                    text_mask=text_mask,
                    image_sample=vision_map.image_sample,
                    position_ids=position_ids,
                    complete=self._complete(vision_map, text_mask),
                )
        return hidden_states

    def _complete(self, vision_map: VisionTokenMap, text_mask: Tensor | None) -> bool:
        """Whether the bidirectional layer is known to have every key that it has a place for."""
        newlines = self.config.newline_keys and vision_map.newline_rows is not None
        return (
            not vision_map.padded
            and (not newlines or vision_map.newlines_padded is False)
            and (text_mask is None or vision_map.text_in_every_sample)
        )

    def fold_(self) -> VisionRemember:
        """Merge the cross-attention's adjacent linear maps, for inference; see ``TokenFeatureCrossAttention.fold_``."""
        if self.cross_attention is not None:
            self.cross_attention.fold_()
        return self

    def extra_repr(self) -> str:
        return f"layers={self.config.layers}, text_guide={self.config.text_guide!r}"
