"""``vr-kernels app``, before there is a page: what it is not given, or given wrongly, is one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from python_tests.models import _folders
from vr_kernels.cli.app import RESULTS, SMALL_IMAGES, named_folders, small_models
from vr_kernels.cli.commands import commands
from vr_kernels.cli.page.contenders import Contender, Limits
from vr_kernels.cli.page.uploads import images_in, read_image


def test_models_come_in_the_order_in_which_they_are_named() -> None:
    folders = named_folders(["Vision Remember=a/b", "pooled=c=d"])
    assert list(folders.items()) == [("Vision Remember", Path("a/b")), ("pooled", Path("c=d"))]


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (["folder"], "--model folder: it must be NAME=DIR"),
        (["=folder"], "it must be NAME=DIR"),
        (["name="], "it must be NAME=DIR"),
        (["name=a", "name=b"], "--model name=b: another model has this name"),
    ],
)
def test_models_without_name_or_folder_are_refused(models: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        named_folders(models)


def test_what_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vr_kernels.cli.app.require", lambda *packages: None)  # Gradio is not met before the models are
    monkeypatch.setattr("vr_kernels.cli.app.RESULTS", tmp_path / "absent")
    model = _folders.save_llava_vr(tmp_path / "model")
    for options, reason in [
        ([], "no model is named"),
        (["--model", f"name={tmp_path / 'absent'}"], f"model {tmp_path / 'absent'}: there is no such folder"),
        (["--model", f"name={model}", "--examples", str(model)], f"examples {model}: it has no image"),
    ]:
        result = CliRunner().invoke(commands, ["app", *options])
        assert result.exit_code == 1
        (said,) = [line for line in result.stderr.splitlines() if line.startswith("vr-kernels app: ")]
        assert reason in said


def test_without_gradio_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(commands, ["app", "--model", "name=folder"])
    assert result.exit_code == 1
    assert 'vr-kernels: gradio is not installed; this needs pip install "vr-kernels[app]"' in result.output


def test_the_small_models_of_a_clone_name_the_digits_of_a_row() -> None:
    (image, *_) = images_in(RESULTS / SMALL_IMAGES)
    for name, folder in small_models().items():
        answer = Contender(name, folder).ask(read_image(image), "row 3 :", Limits(new_tokens=16))
        assert len(answer.text.split()) == 6
        assert all(digit.isdigit() for digit in answer.text.split())
        assert (name == "Vision Remember") == bool(answer.sight.attention)
