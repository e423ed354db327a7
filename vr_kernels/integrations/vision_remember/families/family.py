"""``Family``: what one type of model must say of itself, so that blocks can read its encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vr_kernels.integrations.vision_remember.capture import BlockCapture, Capture
from vr_kernels.integrations.vision_remember.encoded import EncodedImages, cut_if_frozen


class Layout(NamedTuple):
    """Which features the tokens of one image are made of, and where the tokens stand.

    Args:
        windows: (grids, n_h, n_w, K) int64, the rows of the image's features in each cell; each row is in one cell.
        cells: (slots,) int64, the cell (grid*n_h + row)*n_w + column in each slot of the prompt, -1 where none is.
    """

    windows: Tensor
    cells: Tensor


class Family(ABC):
    """One type of model. ``inner`` is always the model that holds the encoder and ``language_model``."""

    # Whether an entry of the encoder's output is a tile, so that neighbours in the prompt are one image.
    tiles_apart = False

    @abstractmethod
    def blocks(self, inner: Any) -> nn.ModuleList:
        """The encoder's blocks; block k returns hidden_states[k]."""

    def parameters(self, inner: Any) -> Iterable[Tensor]:
        """Of all that makes the hidden states."""
        return inner.vision_tower.parameters()  # type: ignore[no-any-return]

    @abstractmethod
    def width(self, inner: Any) -> int:
        """Of the encoder's hidden states."""

    @abstractmethod
    def window(self, inner: Any) -> tuple[int, int]:
        """(s_h, s_w) features that a token is made of."""

    @abstractmethod
    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        """One for each entry of the output of ``get_image_features``, which was called with these arguments.

        Raises:
            ValueError: tokens that no rows of features belong to.
        """

    def saliency(self, inner: Any) -> str | None:
        """What a saliency map can be made of: "cls" or "received", or None where there is none."""
        return None

    def capture(self, inner: Any, levels: Sequence[int], *, saliency: bool) -> Capture:
        """A context that keeps the levels of the encoder's run inside it."""
        return BlockCapture(self.blocks(inner), levels)

    def encoded_images(
        self, inner: Any, arguments: Mapping[str, Any], captured: Capture, neighborhood: tuple[int, int]
    ) -> EncodedImages:
        """What the blocks read, from one run of the encoder."""
        layouts = self.layouts(inner, arguments, captured)
        rows = [layout.windows.numel() for layout in layouts]
        features, saliency = cut_if_frozen(
            captured.features,
            captured.saliency,
            pixels=arguments.get("pixel_values"),
            parameters=self.parameters(inner),
        )
        levels = tuple(level.flatten(0, -2).split(rows) for level in features)
        return EncodedImages(
            levels,
            [places(layout, neighborhood) for layout in layouts],
            None if saliency is None else saliency.flatten().split(rows),
        )


def places(layout: Layout, neighborhood: tuple[int, int]) -> Tensor:
    """(slots, K') feature rows that each slot reads: its cell's, and those of the cells around it in the same grid.

    >>> layout = Layout(windows=torch.arange(4).view(1, 2, 2, 1), cells=torch.tensor([0, 1, -1, 2, 3, -1]))
    >>> places(layout, (0, 0)).flatten().tolist()
    [0, 1, -1, 2, 3, -1]
    >>> places(layout, (0, 1))[:2].tolist()
    [[-1, 0, 1], [0, 1, -1]]
    """
    r_h, r_w = neighborhood
    # (grids, n_h + 2 r_h, n_w + 2 r_w, K)
    padded = torch.nn.functional.pad(layout.windows, (0, 0, r_w, r_w, r_h, r_h), value=-1)
    around = padded.unfold(1, 2 * r_h + 1, 1).unfold(2, 2 * r_w + 1, 1)  # (grids, n_h, n_w, K, 2 r_h + 1, 2 r_w + 1)
    table = around.movedim(3, -1).flatten(3).flatten(0, 2)  # (cells, K')
    return torch.cat([table, table.new_full((1, table.shape[1]), -1)])[layout.cells]  # -1 is the last row
