"""The page in Chromium: upload, ask, look; with the mouse, with keys alone, and with what is refused."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from python_tests.app.conftest import NAMES, REFUSED, Server
from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import user_message

missing = [package for package in ("gradio", "playwright") if find_spec(package) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs the extra test-app: {', '.join(missing)} missing")


def upload(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload an image").click()
    chooser.value.set_files(file)


def ask(page: Any, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    page.get_by_text("All have answered.").wait_for()


def choose_and_ask(page: Any, server: Server, question: str = "w1 w2") -> None:
    upload(page, server.folder / "examples" / "second.png")
    page.get_by_text("second.png is chosen.").wait_for()
    ask(page, question)


def answer_of(page: Any, name: str) -> str:
    return page.get_by_label(f"Answer of {name}").input_value()  # type: ignore[no-any-return]


def test_every_model_answers_an_uploaded_image_with_times_and_a_picture(page: Any, server: Server) -> None:
    choose_and_ask(page, server)
    image = open_image(server.folder / "examples" / "second.png")
    for name in NAMES:
        assistant = Assistant.load(server.folder / name)
        inputs = assistant.inputs([[user_message("w1 w2", 1)]], [[image]])
        assert answer_of(page, name) == assistant.generate(inputs, max_new_tokens=6, do_sample=False)[0]
    figures = page.get_by_text(
        re.compile(r"^\d+ image tokens; first token after \d+\.\d\d s, all 6 after \d+\.\d\d s$")
    )
    assert figures.count() == len(NAMES)
    attention = page.get_by_alt_text("The image: attention at layer 4, what all vision tokens took of the features")
    attention.wait_for()
    assert attention.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [480, 480]
    assert page.get_by_alt_text("Tile 1 of 5 as the encoder gets it.").count() == 2


def test_another_view_and_another_tile_are_drawn(page: Any, server: Server) -> None:
    choose_and_ask(page, server)
    page.get_by_label("Picture of Vision Remember").click()
    page.get_by_role("option", name="the image alone").click()
    page.get_by_alt_text("The image as the encoder gets it.").wait_for()
    assert not page.get_by_label("range slider for Vision token of Vision Remember").is_visible()
    page.get_by_label("number input for Tile of pooled").fill("3")
    page.get_by_label("number input for Tile of pooled").press("Tab")
    page.get_by_alt_text("Tile 3 of 5 as the encoder gets it.").wait_for()


def test_a_click_into_the_picture_chooses_the_token(page: Any, server: Server) -> None:
    choose_and_ask(page, server)
    picture = page.get_by_alt_text("The image: attention at layer 4")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    picture.click(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})
    page.get_by_alt_text("what the vision token in row 1, column 2 took of the features").wait_for()
    assert page.get_by_label("number input for Vision token of Vision Remember").input_value() == "2"


def test_keys_alone_do_everything(page: Any) -> None:
    keys = page.keyboard
    keys.press("Tab")
    with page.expect_file_chooser():
        keys.press("Enter")
    for _ in range(2):
        keys.press("Tab")
    keys.press("Enter")  # the second example
    page.get_by_text("second.png is chosen.").wait_for()
    keys.press("Tab")
    keys.type("w1 w2")
    keys.press("Enter")
    page.get_by_text("All have answered.").wait_for()
    slider = page.get_by_label("range slider for Vision token of Vision Remember")
    slider.wait_for()
    reached = []
    while "range slider for Vision token of Vision Remember" not in "".join(reached):
        keys.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''"))
        assert len(reached) < 20, reached
    for _ in range(3):
        keys.press("ArrowRight")
    page.get_by_alt_text("what the vision token in row 2, column 1 took of the features").wait_for()


def test_a_broken_image_is_a_sentence_and_no_image(page: Any, server: Server) -> None:
    upload(page, server.folder / "examples" / "first.png")
    page.get_by_text("first.png is chosen.").wait_for()
    broken = server.folder / "broken.png"
    broken.write_bytes((server.folder / "examples" / "first.png").read_bytes()[:2000])
    upload(page, broken)
    page.get_by_role("alert").get_by_text("broken.png cannot be read as a PNG, JPEG or WebP image").wait_for()
    page.get_by_label("Question").fill("w1")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("alert").get_by_text("There is no image yet: upload one.").wait_for()
    assert "Traceback" not in page.content() + server.log


def test_an_image_needs_a_question(page: Any, server: Server) -> None:
    upload(page, server.folder / "examples" / "first.png")
    page.get_by_text("first.png is chosen.").wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("alert").get_by_text("There is no question yet: write one.").wait_for()


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [("notes.txt", 9, "Invalid file type: notes.txt"), ("large.png", 21 * 2**20, "exceed the maximum allowed size")],
)
def test_another_kind_of_file_and_a_large_one_are_refused(
    page: Any, server: Server, name: str, size: int, sentence: str
) -> None:
    with (server.folder / name).open("wb") as file:
        file.truncate(size)
    upload(page, server.folder / name)
    page.get_by_text(sentence).first.wait_for()
    assert "Traceback" not in server.log


def test_the_server_refuses_a_large_file_itself(server: Server) -> None:
    head = b'--part\r\nContent-Disposition: form-data; name="files"; filename="large.png"\r\n\r\n'
    body = head + bytes(21 * 2**20) + b"\r\n--part--\r\n"
    large = Request(f"{server.url}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=part"})
    with pytest.raises(HTTPError) as refused:
        build_opener(ProxyHandler({})).open(large)
    refused.value.close()
    assert refused.value.code == 413


def test_a_model_that_refuses_a_question_says_so_and_the_others_answer(page: Any, server: Server) -> None:
    choose_and_ask(page, server, f"w1 {REFUSED}")
    assert answer_of(page, "strict") == "No answer: the chat template refuses the prompt: not this word"
    assert all(len(answer_of(page, name).split()) == 6 for name in NAMES[:2])


def test_a_file_that_is_named_by_its_address_is_not_fetched(page: Any, server: Server) -> None:
    """Gradio would, for a program that speaks to it as the page does."""
    image = {"path": "http://192.0.2.1/image.png", "meta": {"_type": "gradio.FileData"}}
    config = page.request.get(f"{server.url}config").json()
    event = next(one["id"] for one in config["dependencies"] if ["upload"] in [target[1:] for target in one["targets"]])
    body = {"data": [image], "fn_index": event, "session_hash": "program"}
    assert page.request.post(f"{server.url}gradio_api/queue/join", data=body).ok
    stream = page.request.get(f"{server.url}gradio_api/queue/data?session_hash=program").text()
    messages = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    (ended,) = [message for message in messages if message["msg"] == "process_completed"]
    assert not ended["success"]
    assert ended["output"]["error"] == "A file must be uploaded; its address is not enough."


def test_the_browser_is_told_to_ask_no_other_server(page: Any, server: Server) -> None:
    refused = page.evaluate("fetch('http://localhost:9/').then(() => 'asked', error => error.name)")
    assert refused == "TypeError"
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    assert "*" not in policy


def test_other_files_of_the_server_are_not_served(page: Any, server: Server) -> None:
    for file in (server.folder / "log", server.folder / "pooled" / "config.json"):
        assert page.request.get(f"{server.url}gradio_api/file={file}").status == 403


def test_two_visitors_have_an_image_each(page: Any, server: Server, browser: Any) -> None:
    upload(page, server.folder / "examples" / "first.png")
    page.get_by_text("first.png is chosen.").wait_for()
    other = browser.new_context().new_page()
    other.goto(server.url)
    other.get_by_label("Question").fill("w1")
    other.get_by_label("Question").press("Enter")
    other.get_by_role("alert").get_by_text("There is no image yet").wait_for()
    other.context.close()
    ask(page, "w1")
    assert len(answer_of(page, "pooled").split()) == 6
