"""``LlavaVRProcessor``: images and text to a model's inputs, with as many placeholders as the model makes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlavaNextProcessor

from vr_kernels.models.llava_vr._transformers import (
    CLIPImageProcessorPil,
    LlavaNextImageProcessorPil,
    MultiModalData,
    SiglipImageProcessorPil,
)
from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig, is_clip
from vr_kernels.models.llava_vr.slots import tokens_of_image


class LlavaVRProcessor(LlavaNextProcessor):
    """As ``LlavaNextProcessor``, for compressed tiles.

    Args:
        image_processor: with ``image_grid_pinpoints`` for AnyRes (``LlavaNextImageProcessorPil``), or without, one tile
            an image (``CLIPImageProcessorPil``, ``SiglipImageProcessorPil``).
        tokenizer: its ``image_token`` or the argument's stands for an image in the text.
        token_grid: [n_h, n_w] cells of a tile, ``LlavaVRConfig.token_grid``.
        tokens_per_cell: ``LlavaVRConfig.tokens_per_cell``.

    Raises:
        ValueError: no token_grid.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        token_grid: Sequence[int] | None = None,
        tokens_per_cell: int = 1,
        chat_template: str | None = None,
        image_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        if token_grid is None:
            raise ValueError("LlavaVRProcessor: token_grid is None; it must be the config's token_grid [n_h, n_w]")
        self.token_grid, self.tokens_per_cell = list(token_grid), tokens_per_cell
        super().__init__(image_processor, tokenizer, chat_template=chat_template, image_token=image_token, **kwargs)

    @classmethod
    def from_config(
        cls, config: LlavaVRConfig, tokenizer: Any, image_processor: Any = None, **kwargs: Any
    ) -> LlavaVRProcessor:
        """The processor of a model, with an image processor of its tower's size unless one is given."""
        if image_processor is None:
            image_processor = _image_processor(config)
        return cls(
            image_processor,
            tokenizer,
            token_grid=config.token_grid,
            tokens_per_cell=config.tokens_per_cell,
            **kwargs,
        )

    def count_image_tokens(self, height: int, width: int) -> int:
        """How many tokens, newlines among them, an image of this size has in the prompt."""
        pinpoints = getattr(self.image_processor, "image_grid_pinpoints", None) or []
        tile = _tile_size(self.image_processor)
        grid = (self.token_grid[0], self.token_grid[1])
        return len(tokens_of_image((height, width), pinpoints, tile, grid, self.tokens_per_cell))

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        sizes = image_inputs.get("image_sizes")
        height, width = (1, 1) if sizes is None else (int(size) for size in sizes[image_idx])  # one tile: any size
        return self.image_token * self.count_image_tokens(height, width)  # type: ignore[no-any-return]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        counts = [self.count_image_tokens(int(height), int(width)) for height, width in image_sizes]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))


def _tile_size(image_processor: Any) -> int:
    """Pixels along the edge of a tile, as the image processor makes it."""
    for name in ("crop_size", "size"):
        size = getattr(image_processor, name, None)
        for side in ("height", "shortest_edge"):
            pixels = None if size is None else size.get(side)
            if pixels is not None:
                return int(pixels)
    raise ValueError(f"LlavaVRProcessor: image_processor, a {type(image_processor).__name__}, names no size of a tile")


def _image_processor(config: LlavaVRConfig) -> Any:
    """Without torchvision, which is no dependency; the normalisation is that of the tower's kind."""
    side = config.vision_config.image_size
    clip = is_clip(config.vision_config)
    own = CLIPImageProcessorPil if clip else SiglipImageProcessorPil
    if not config.image_grid_pinpoints:
        if clip:
            return own(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return own(size={"height": side, "width": side})
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
