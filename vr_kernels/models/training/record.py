"""What a run leaves to read: its log as JSON, and the loss as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vr_kernels.models.training.bad_samples import BadSamples


class RecordLog(TrainerCallback):
    """Adds the number of bad samples to each line of the log, and writes ``log.json`` and ``loss.png``.

    They are written with each checkpoint and at the end, by the main process.
    """

    def __init__(self, output_dir: Path, bad_samples: BadSamples) -> None:
        self.output_dir, self.bad_samples = output_dir, bad_samples

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.log_history[-1]["bad_samples"] = self.bad_samples.count()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            _write(self.output_dir / "log.json", json.dumps(state.log_history, indent=1).encode())
            draw_loss(state.log_history, self.output_dir / "loss.png")

    on_train_end = on_save


def draw_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Loss and learning rate by step."""
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure

    lines = [line for line in log if "loss" in line]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(8, 4), layout="constrained")
    loss = figure.subplots()
    loss.plot(steps, [line["loss"] for line in lines], color="C0", label="loss")
    loss.set(xlabel="step", ylabel="loss")
    rate = loss.twinx()
    rate.plot(steps, [line["learning_rate"] for line in lines], color="C1", label="learning rate")
    rate.set(ylabel="learning rate")
    figure.legend(handles=[*loss.lines, *rate.lines], loc="outside upper center", ncols=2)
    figure.savefig(path.with_suffix(".part"), format="png")
    os.replace(path.with_suffix(".part"), path)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)
