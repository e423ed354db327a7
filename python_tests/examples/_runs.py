"""Runs of the reproduction that take seconds: few steps, an encoder of two steps, nothing measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.reproduction import cost, encoder, run, training
from examples.reproduction.tasks import find_task

RECIPE = training.Recipe(steps=4, batch=2, warmup_steps=1, save_steps=2, curve_steps=2, curve_images=3)


def prepare(folder: Path, task: str) -> Path:
    """An encoder of two steps in a folder of its own."""
    encoder.train_encoder(find_task(task), folder, steps=2, test_images=2)
    return folder


def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that memory is measured in."""

    def unknown(*arguments: Any) -> dict[str, int]:
        raise cost.Unknown("not here")

    monkeypatch.setattr(cost, "peak_memory", unknown)


def run_row(
    work: Path, tower: Path, row: str = "local", name: str = "work", task: str = "digits", **options: Any
) -> dict[str, Any]:
    records = work / "records"
    return run.run(
        task, row, 0, recipe=RECIPE, records=records, work=work / name, encoder=tower, test_images=3, **options
    )
