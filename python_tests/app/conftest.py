"""A page of three tiny models, served by the command itself, and a browser that may ask no other server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from python_tests.models import _folders, _llava_vr

CHROMIUM = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
SECONDS = 60
# One thread, and no proxy between the browser, the server and itself.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

# In the order of their columns. The last one's template refuses a word, as templates of some models do.
NAMES = ["Vision Remember", "pooled", "strict"]
REFUSED = "w9"


@dataclass
class Server:
    url: str
    folder: Path  # models by name, images, and examples

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    _folders.save_llava_vr(folder / "Vision Remember", image_grid_pinpoints=[])
    _folders.save_llava_vr(folder / "pooled", vr_layers=[])
    strict = _folders.save_llava_vr(folder / "strict", vr_layers=[])
    refusal = f"{{% if '{REFUSED}' in messages[0].content %}}{{{{ raise_exception('not this word') }}}}{{% endif %}}"
    (strict / "chat_template.jinja").write_text(refusal + "{{ messages[0].content }}")
    (folder / "examples").mkdir()
    for number, name in enumerate(["first.png", "second.png"]):
        _llava_vr.image(seed=number).save(folder / "examples" / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [word for name in NAMES for word in ("--model", f"{name}={folder / name}")]
    (folder / "temporary").mkdir()
    options = ["--examples", folder / "examples", "--max-new-tokens", "6", "--port", port]
    command = [sys.executable, "-c", "from vr_kernels.cli import main; main()", "app", *models, *map(str, options)]
    environment = os.environ | ENVIRONMENT | {"TMPDIR": str(folder / "temporary")}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        said = process.stdout.readline()  # printed once the page is served
        assert said.startswith(f"Page: http://127.0.0.1:{port}/"), (folder / "log").read_text()
        yield Server(f"http://127.0.0.1:{port}/", folder)
        process.terminate()
    assert list((folder / "temporary").glob("vr-kernels-app-*")) == []  # what was uploaded is gone


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}; CHROMIUM names another")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """Opened, and ready for keys. In the end every request was one to the server, and no script had failed."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(1000 * SECONDS)
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.on("filechooser", lambda chooser: None)  # else a key may open one before anyone watches
    opened.goto(server.url)
    opened.get_by_role("button", name="Thumbnail 2 of 2").wait_for()
    yield opened
    context.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(server.url).netloc}
    assert failed == []
