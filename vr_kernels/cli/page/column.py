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
        if sight.tiles is None:
            return shown
        tiles, tokens, first = len(sight.tiles), _tokens(sight), pictures.draw(sight, names[-1], 0, 0)
        return shown | {
            self.view: gr.update(choices=names, value=names[-1], visible=True),
            self.tile: gr.update(maximum=max(tiles, 2), value=1, visible=tiles > 1),
            self.token: gr.update(maximum=max(tokens, 1), value=0, visible=_has_tokens(names[-1])),
            self.picture: gr.update(value=first.image, alt_text=first.words, visible=True),
            self.words: first.words,
        }

    def connect(self, private: dict[str, Any]) -> None:
        """A slider that is being moved is never written: an answer to its last place but one would move it back."""
        chosen, drawn = [self.sight, self.view, self.tile, self.token], [self.picture, self.words]
        self.view.input(self._viewed, chosen, [self.token, *drawn], trigger_mode="always_last", **private)
        for slider in (self.tile, self.token):
            slider.input(self._drawn, chosen, drawn, trigger_mode="always_last", **private)
        self.picture.select(self._clicked, chosen, [self.token, *drawn], **private)

    def _viewed(self, sight: Sight | None, view: str, tile: float, token: float) -> dict[Any, Any]:
        return {self.token: gr.update(visible=_has_tokens(view)), **self._drawn(sight, view, tile, token)}

    def _clicked(
        self, sight: Sight | None, view: str, tile: float, token: float, where: gr.SelectData
    ) -> dict[Any, Any]:
        if sight is not None and sight.token_grid is not None:
            token = pictures.cell_at(sight, pictures.size_of(sight), *where.index)
        return {self.token: token, **self._drawn(sight, view, tile, token)}

    def _drawn(self, sight: Sight | None, view: str, tile: float, token: float) -> dict[Any, Any]:
        if sight is None or sight.tiles is None:
            return {self.words: "This is no longer known: ask again."}
        tile, token = min(max(int(tile), 1), len(sight.tiles)), min(max(int(token), 0), _tokens(sight))  # typed numbers
        picture = pictures.draw(sight, view, tile - 1, token)
        return {self.picture: gr.update(value=picture.image, alt_text=picture.words), self.words: picture.words}


def _tokens(sight: Sight) -> int:
    """Of a tile."""
    return math.prod(sight.token_grid or (0,))


def _has_tokens(view: str) -> bool:
    return view not in (pictures.PLAIN, pictures.SALIENCY)
