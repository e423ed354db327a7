"""Saliency, zipped tokens and window attention drawn over the photograph."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import SubFigure
from torch import Tensor


def over_grid(attention: Tensor) -> np.ndarray:
    """(n_h, n_w, h, K) weights -> their mean over heads at each feature, (n_h s, n_w s)."""
    n_h, n_w, _, slots = attention.shape
    window = int(slots**0.5)
    mean = attention.float().mean(2).view(n_h, n_w, window, window)
    return mean.transpose(1, 2).reshape(n_h * window, n_w * window).numpy()


def merged_over(zipped: Tensor, dominant: int) -> np.ndarray:
    """(H, W) numbers of tokens -> (H, W, 4): a colour for each token that patches were merged into, clear if kept."""
    colours: np.ndarray = colormaps["tab10"]((zipped.numpy() - dominant) % 10)
    colours[..., 3] = np.where(zipped.numpy() < dominant, 0, 0.7)
    return colours


def draw(
    figure: SubFigure, photograph: Tensor, attention: Tensor, saliency: Tensor, zipped: Tensor, dominant: int
) -> None:
    """photograph (3, pixels, pixels), 0 to 1; attention (n_h, n_w, h, K), saliency (H, W) and zipped (H, W), numbers of
    tokens of which the first ``dominant`` are patches, of the whole of it."""
    weights, slots = over_grid(attention), attention.shape[-1]
    window = int(slots**0.5)
    grid, size = weights.shape[0], photograph.shape[-1]
    pixels = photograph.permute(1, 2, 0).numpy()

    left, middle, below, right = figure.subplots(2, 2).flat
    left.imshow(pixels)
    left.set_title(f"{grid}x{grid} features, one token for each window of {window}x{window}")
    for axes in (middle, right):
        axes.imshow(pixels.mean(-1), cmap="gray")
    received = saliency.float().numpy() * saliency.numel()  # equal shares are one
    salient = middle.imshow(received, cmap="viridis", alpha=0.6, extent=(0, size, size, 0))
    middle.set_title("saliency: attention that each feature receives in the encoder")
    figure.colorbar(salient, ax=middle, label="attention received, in equal shares", shrink=0.8)
    below.imshow(pixels)
    below.imshow(merged_over(zipped, dominant), extent=(0, size, size, 0))
    contextual = int(zipped.max()) + 1 - dominant
    below.set_title(f"VisionZip: {dominant} patches kept (clear), the rest merged into {contextual}")
    # Equal weights are the colour map's middle.
    norm = TwoSlopeNorm(vcenter=1 / slots, vmin=0, vmax=max(float(weights.max()), 2 / slots))
    drawn = right.imshow(weights, cmap="coolwarm", norm=norm, alpha=0.6, extent=(0, size, size, 0))
    right.set_title("attention inside each window, mean over heads")
    for axes in (left, middle, below, right):
        for line in np.linspace(0, size, grid // window + 1):
            axes.axhline(line, color="white", linewidth=0.6)
            axes.axvline(line, color="white", linewidth=0.6)
        axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
    figure.colorbar(drawn, ax=right, label=f"weight (each window sums to 1; equal weights are 1/{slots})", shrink=0.8)
    figure.suptitle(
        "vr_kernels on a SigLIP vision transformer's features\nrandom weights: the pattern shows mechanics, not meaning"
    )
