"""One model's column of the page: its answer, its times, and the pictures of what it looked at."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from vr_kernels.cli.page import pictures
from vr_kernels.cli.page.contenders import Answer
from vr_kernels.cli.page.sight import Sight


class Column:
    """Made where it stands on the page; ``connect`` makes it answer clicks and keys.

    A token is chosen with its slider, which takes keys, or by a click into the picture.
    """

    def __init__(self, name: str) -> None:
        with gr.Column(min_width=280):
            gr.Markdown(f"## {name}")
            self.answer = gr.Textbox(label=f"Answer of {name}", lines=2, interactive=False)
            self.figures = gr.Markdown()
            self.view = gr.Dropdown(label=f"Picture of {name}", interactive=True, visible=False)
            self.tile = gr.Slider(
                label=f"Tile of {name}", minimum=1, maximum=2, step=1, interactive=True, visible=False
            )
            self.token = gr.Slider(
                label=f"Vision token of {name} (0: all)", minimum=0, maximum=1, step=1, interactive=True, visible=False
            )
            self.picture = gr.Image(
                show_label=False, type="pil", format="png", interactive=False, buttons=[], visible=False
            )
            self.words = gr.Markdown()
            self.sight = gr.State(None, time_to_live=3600)

    @property
    def outputs(self) -> list[Any]:
        drawn = [self.view, self.tile, self.token, self.picture, self.words]
        return [self.answer, self.figures, self.sight, *drawn]

    def cleared(self) -> dict[Any, Any]:
        hidden = {component: gr.update(visible=False) for component in (self.view, self.tile, self.token, self.picture)}
        return {self.answer: "", self.figures: "", self.sight: None, self.words: "", **hidden}

    def failed(self, reason: str) -> dict[Any, Any]:
        return {self.answer: f"No answer: {reason}"}

    def answered(self, answer: Answer) -> dict[Any, Any]:
        """Its last view first: the attention of the deepest block, or else what there is."""
        shown = {self.answer: answer.text, self.figures: answer.figures(), self.sight: answer.sight}
        sight, names = answer.sight, pictures.views(answer.sight)
        if not names:
            return shown
        return shown | {
            self.view: gr.update(choices=names, value=names[-1], visible=True),
            **self._drawn(sight, names[-1], 1, 0),
        }

    def connect(self, private: dict[str, Any]) -> None:
        chosen = [self.sight, self.view, self.tile, self.token]
        outputs = [self.tile, self.token, self.picture, self.words]
        for component in (self.view, self.tile, self.token):
            component.input(self._drawn, chosen, outputs, trigger_mode="always_last", **private)
        self.picture.select(self._clicked, chosen, outputs, **private)

    def _clicked(self, sight: Sight | None, view: str, tile: float, token: float, where: gr.SelectData) -> Any:
        if sight is not None and sight.token_grid is not None:
            token = pictures.cell_at(sight, pictures.size_of(sight), *where.index)
        return self._drawn(sight, view, tile, token)

    def _drawn(self, sight: Sight | None, view: str, tile: float, token: float) -> Any:
        """The picture, and as much of the sliders as it needs."""
        if sight is None or sight.tiles is None:
            return gr.skip()  # forgotten, for it is old
        tiles, tokens = len(sight.tiles), math.prod(sight.token_grid or (0,))
        tile, token = min(max(int(tile), 1), tiles), min(max(int(token), 0), tokens)  # a number may be typed in
        picture = pictures.draw(sight, view, tile - 1, token)
        has_tokens = view not in (pictures.PLAIN, pictures.SALIENCY)
        return {
            self.tile: gr.update(maximum=max(tiles, 2), value=tile, visible=tiles > 1),
            self.token: gr.update(maximum=max(tokens, 1), value=token, visible=has_tokens),
            self.picture: gr.update(value=picture.image, alt_text=picture.words, visible=True),
            self.words: picture.words,
        }
