"""How the page keeps what it is given: no request but to the server it came from, nothing told to anyone."""

from __future__ import annotations

from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A browser asks no other server, whatever the page or one of Gradio's parts names.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class _Headers:
    """Adds ``HEADERS`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def options() -> dict[str, Any]:
    """Of ``gr.Blocks.launch``: no tunnel, no services of Gradio, fonts of the machine."""
    return {
        "app_kwargs": {"middleware": [Middleware(_Headers)]},
        "enable_monitoring": False,
        "footer_links": [],
        "mcp_server": False,
        "pwa": False,
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    }


def refuse_addresses() -> None:
    """A program may name a file by its address in place of uploading it, and Gradio would fetch it."""
    processing_utils.async_ssrf_protected_download = _refuse


async def _refuse(url: str, cache_dir: str) -> NoReturn:
    raise gr.Error("A file must be uploaded; its address is not enough.", print_exception=False)
