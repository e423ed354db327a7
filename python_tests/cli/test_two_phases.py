"""From a model's first weights to its answer, by commands alone."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import user_message

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "llava_vr_two_phases.py"))


def run(*words: object) -> str:
    result = CliRunner().invoke(commands, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.stdout


def train(folder: Path, model: Path, phase: int, **settings: Any) -> Path:
    """The trained model's folder."""
    file, output = folder / f"{phase}.yaml", folder / f"phase{phase}"
    always: dict[str, Any] = {
        "model": str(model), "data": str(folder / "data.json"), "images": str(folder), "output_dir": str(output),
        "phase": phase, "max_steps": 3, "learning_rate": 1e-2, "global_batch_size": 4, "batch_size_per_device": 4,
        "precision": "fp32", "workers": 0, "cpu": True,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(always | settings))
    run("train", "--config", file)
    return output / "model"


def test_two_phases_and_an_answer(tmp_path: Path) -> None:
    EXAMPLE["save_data"](tmp_path)
    untrained = EXAMPLE["save_model"](tmp_path / "untrained")
    aligned = train(tmp_path, untrained, 1, chat_template="plain")
    tuned = train(tmp_path, aligned, 2, chat_template="vicuna")
    question, image = EXAMPLE["QUESTION"], tmp_path / "coffee.png"
    answers = []
    for model in (untrained, aligned, tuned):
        asked = ("--model", model, "--image", image, "--prompt", question, "--max-new-tokens", 8)
        answers.append(run("generate", *asked))
    assert len(set(answers)) == 3

    assistant = Assistant.load(tuned)
    inputs = assistant.inputs([[user_message(question, 1)]], [[open_image(image)]])
    assert answers[2] == assistant.generate(inputs, max_new_tokens=8, do_sample=False)[0] + "\n"
    assert "USER: <image>" in assistant.writer.prompt([user_message(question, 1)])
