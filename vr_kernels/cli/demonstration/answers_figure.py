"""The first image, what its tokens and its encoder looked at, and both models' answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import SubFigure
from torch import Tensor

from vr_kernels.cli.demonstration.answers import Overlays, Question, judged
from vr_kernels.models.inference import open_image


def draw(figure: SubFigure, question: Question, looked: Overlays, answers: dict[str, str]) -> None:
    """``answers`` by what the model is called."""
    pixels = np.asarray(open_image(question.image))
    size = pixels.shape[0]
    whole, attended, salient, said = figure.subplots(1, 4)
    whole.imshow(pixels)
    whole.set_title("an unseen image")
    tokens, features = looked.windows[0] * looked.windows[1], looked.attention.numel()
    equal = tokens / features
    over(
        figure,
        attended,
        pixels,
        looked.attention,
        TwoSlopeNorm(equal, 0, max(float(looked.attention.max()), 2 * equal)),
    )
    attended.set_title("window attention after layer 1")
    over(figure, salient, pixels, looked.saliency, None)
    salient.set_title("saliency in the encoder")
    for axes in (whole, attended, salient):
        for count, line in zip(looked.windows, (axes.axhline, axes.axvline), strict=True):
            for place in np.linspace(0, size, count + 1):
                line(place, color="tab:green", linewidth=0.6)
        axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
    said.axis("off")
    lines = {f"question: {question.prompt}": "", "truth": question.answer} | answers
    for number, (name, text) in enumerate(lines.items()):
        said.text(0, 0.85 - 0.22 * number, name, fontsize=10, color="dimgray")
        _write(said, 0.76 - 0.22 * number, text, question.answer)
    figure.suptitle(f"A small trained LLaVA-VR: its {tokens} tokens read the {features} features again")


def over(figure: SubFigure, axes: Any, pixels: Any, weights: Tensor, norm: Any) -> None:
    """Weights of features over the image that they are of."""
    axes.imshow(pixels.mean(-1), cmap="gray")
    colours = "viridis" if norm is None else "coolwarm"
    height, width = pixels.shape[:2]
    drawn = axes.imshow(weights.numpy(), cmap=colours, norm=norm, alpha=0.5, extent=(0, width, height, 0))
    figure.colorbar(drawn, ax=axes, shrink=0.7)


def _write(axes: Any, height: float, text: str, truth: str) -> None:
    """Word by word, the wrong ones red."""
    for place, (word, right) in enumerate(judged(text, truth)):
        axes.text(0.1 * place, height, word, fontsize=15, family="monospace", color="black" if right else "red")
