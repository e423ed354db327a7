"""The page itself, of Gradio's components: what stands where, and what a click or a key does."""

from __future__ import annotations

import html
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vr_kernels.cli.page.column import Column
from vr_kernels.cli.page.contenders import Contender, Limits
from vr_kernels.cli.page.privacy import options, refuse_addresses
from vr_kernels.cli.page.uploads import FORMATS, MAX_BYTES, MAX_QUESTION, check_question, read_image

PREVIEW = 640  # pixels along the longer edge
HOUR = 3600  # seconds that files of visitors are kept

INTRODUCTION = (
    "# One question, several models\n"
    f"Images may be PNG, JPEG or WebP, of up to {MAX_BYTES // 2**20} MB. What you upload and ask stays on this server."
)


def build(contenders: Sequence[Contender], examples: Sequence[Path], limits: Limits) -> gr.Blocks:
    """A column for each model, under one image and one question."""
    with gr.Blocks(title="vr_kernels", analytics_enabled=False, delete_cache=(HOUR // 4, HOUR)) as page:
        gr.Markdown(INTRODUCTION)
        chosen = gr.State(None, time_to_live=HOUR)
        with gr.Row():
            with gr.Column():
                upload = gr.UploadButton("Upload an image", file_types=list(FORMATS), elem_id="upload")
                gallery = _gallery(examples)
                question = gr.Textbox(
                    label="Question", max_length=MAX_QUESTION, placeholder="Enter asks all models", elem_id="question"
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                status = gr.Markdown(_said("Choose an image, then ask."), latex_delimiters=[], elem_id="status")
            preview = gr.Image(label="Image", type="pil", interactive=False, alt_text="the chosen image", buttons=[])
        with gr.Row():
            columns = [Column(contender.name) for contender in contenders]

        def take(path: str | None) -> dict[Any, Any]:
            """An image that can be read becomes the chosen one; with another there is none."""
            try:
                image = read_image(Path(path or "this file"))
            except ValueError as reason:
                return {chosen: None, preview: None, status: _refused(str(reason))}
            image.thumbnail((PREVIEW, PREVIEW))
            return {chosen: path, preview: image, status: _said(f"{Path(path or '').name} is chosen.")}

        def pick(picked: gr.SelectData) -> dict[Any, Any]:
            return take(str(examples[picked.index]))

        def answer(path: str | None, asked: str) -> Iterator[dict[Any, Any]]:
            """Model by model, so that none disturbs another's times."""
            try:
                if path is None:
                    raise ValueError("There is no image yet: upload one.")
                image, wanted = read_image(Path(path)), check_question(asked)
            except ValueError as reason:
                yield {status: _refused(str(reason))}
                return
            yield {component: value for column in columns for component, value in column.cleared().items()}
            for number, (contender, column) in enumerate(zip(contenders, columns, strict=True), 1):
                yield {status: _said(f"{contender.name} answers, {number} of {len(columns)}.")}
                try:
                    shown = column.answered(contender.ask(image, wanted, limits))
                except ValueError as reason:
                    shown = column.failed(str(reason))
                except Exception as reason:  # what one model stumbles over does not keep others from answering
                    traceback.print_exc()
                    shown = column.failed(f"{type(reason).__name__}; the server's log says more")
                yield shown
            yield {status: _said("All have answered.")}

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        upload.upload(take, upload, [chosen, preview, status], **private)
        if gallery is not None:
            gallery.select(pick, None, [chosen, preview, status], **private)
        gr.on(
            [ask.click, question.submit],
            answer,
            [chosen, question],
            [status, *(component for column in columns for component in column.outputs)],
            trigger_mode="once",
            concurrency_limit=1,
            **private,
        )
        for column in columns:
            column.connect(private)
    return page


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serve until the process ends."""
    refuse_addresses()
    settings = {"server_name": host, "server_port": port, "max_file_size": MAX_BYTES, "quiet": True, **options()}
    _, url, _ = page.queue(max_size=16, api_open=False).launch(prevent_thread_lock=True, **settings)
    print(f"Page: {url} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def _gallery(examples: Sequence[Path]) -> gr.Gallery | None:
    if not examples:
        return None
    return gr.Gallery(
        [(str(path), path.name) for path in examples],
        label="Or take one of these",
        allow_preview=False,
        columns=4,
        height=160,
        object_fit="contain",
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def _said(sentence: str) -> str:
    return f'<p role="status">{html.escape(sentence)}</p>'


def _refused(sentence: str) -> str:
    return f'<p role="alert"><strong>{html.escape(sentence)}</strong></p>'
