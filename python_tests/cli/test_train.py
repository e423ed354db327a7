"""``vr-kernels train``: what it prints, and that everything wrong is one sentence and exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from python_tests.models.training import _tiny
from vr_kernels.cli.commands import commands


def command(folder: Path, *options: str, **changes: Any) -> Result:
    (folder / "settings.yaml").write_text(yaml.safe_dump(_tiny.settings(folder, **changes)))
    return CliRunner().invoke(commands, ["train", "--config", str(folder / "settings.yaml"), *options])


def test_a_run_says_what_it_trains_and_where_the_model_is(tmp_path: Path) -> None:
    _tiny.save_model(tmp_path / "start")
    _tiny.save_data(tmp_path)
    done = command(tmp_path, phase=1, max_steps=2)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["language_model", "no"] in [[row[0], row[-1]] for row in rows if len(row) == 3]
    assert ["vision_remember", "yes"] in [[row[0], row[-1]] for row in rows if len(row) == 3]
    assert f"Model: {tmp_path}/out/model" in done.stdout
    assert "Steps: 2, mean loss" in done.stdout

    again = command(tmp_path, phase=1, max_steps=2)
    assert (again.exit_code, again.stderr.count("holds another run; resume it")) == (1, 1)
    assert command(tmp_path, "--resume", phase=1, max_steps=2).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": 1}, "TrainConfig: 'lr' is no setting; it must be one of model, data"),
        ({"phase": "one"}, "TrainConfig: phase is 'one'; it must be 1 or 2"),
        ({"data": "absent.json"}, "ConversationDataset: data absent.json cannot be read: No such file or directory"),
        ({"images": "absent"}, "ConversationDataset: images is 'absent'; there is no such folder"),
        ({"model": "/absent/model"}, "/absent/model"),
        ({"chat_template": "alpaca"}, "chat_template is 'alpaca'; it must be one of chatml, vicuna, plain, or a Jinja"),
        ({"global_batch_size": 3, "batch_size_per_device": 2}, "global_batch_size is 3; it must be a multiple of 2"),
        ({"phase": 1, "learning_rates": {"vision_tower": 1}}, "learning_rates names vision_tower, of which this phase"),
    ],
)
def test_what_is_wrong_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    _tiny.save_model(tmp_path / "start")
    _tiny.save_data(tmp_path)
    done = command(tmp_path, **changes)
    assert done.exit_code == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("vr-kernels train: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in done.output


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_ends_a_run_with_its_name(workers: int, tmp_path: Path) -> None:
    _tiny.save_model(tmp_path / "start")
    _tiny.save_data(tmp_path, 1)
    image = tmp_path / "images" / "0-0.png"
    image.write_bytes(image.read_bytes()[:-200])
    done = command(tmp_path, global_batch_size=1, workers=workers)
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"vr-kernels train: sample 0 (id 'sample-0'): image {image} cannot be read: ")
    assert "Traceback" not in done.output


def test_a_file_of_settings_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["train", "--config", str(tmp_path / "absent.yaml")])
    assert done.exit_code == 1
    assert done.stderr.endswith("absent.yaml cannot be read: No such file or directory\n")
