"""Folders appear whole or not at all."""

from pathlib import Path

import pytest

from vr_kernels.models.training import checkpoints
from vr_kernels.models.training.checkpoints import STAGING


def stage(folder: Path, name: str, content: str) -> Path:
    staged = folder / STAGING / name
    staged.mkdir(parents=True)
    (staged / "weights").write_text(content)
    return staged


def test_a_folder_gets_its_name_once_its_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def flush(path: Path) -> None:
        flushed.append((path.name, (tmp_path / "model").exists()))

    monkeypatch.setattr(checkpoints, "_flush", flush)
    checkpoints.publish(stage(tmp_path, "model", "new"), tmp_path / "model")
    assert flushed == [("weights", False), ("model", False), (tmp_path.name, True)]
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_of_the_same_name_makes_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(checkpoints, "_exchange", lambda one, other: False)
    for content in ("old", "new"):
        checkpoints.publish(stage(tmp_path, "model", content), tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_newest_are_those_of_the_highest_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-x", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-1000").write_text("a file")
    steps = [path.name.partition("-")[2] for path in checkpoints.checkpoints(tmp_path)]
    assert steps == ["9", "10", "100"]
    checkpoints.keep_newest(tmp_path, None)
    checkpoints.keep_newest(tmp_path, 5)
    assert len(checkpoints.checkpoints(tmp_path)) == 3
    checkpoints.keep_newest(tmp_path, 1)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-100"]
    assert (tmp_path / "model").exists()
    assert not (tmp_path / STAGING).exists()
