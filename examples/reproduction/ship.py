"""The small trained models that the repository ships, and the questions that go with them, for the demo and the page.

Weights are written in half precision, a few MB in all; the record beside each says what that did to its answers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.reproduction.digits import draw_grid, load_split
from examples.reproduction.records import MODELS, RECORDS, environment, read_record, record_path, write_json
from examples.reproduction.run import TEST_SEED, WORK, generated_accuracy

SHIPPED = {"digits-pooled": ("pool", 0), "digits-vision-remember": ("full", 0)}
QUESTIONS = MODELS / "questions"
NUMBER_OF_QUESTIONS = 6


def ship(folder: Path = MODELS) -> None:
    """Writes every shipped model from its finished run, and the questions.

    Raises:
        FileNotFoundError: a run without a record or without its model.
    """
    for name, (row, seed) in SHIPPED.items():
        record = read_record(record_path("digits", row, seed, RECORDS))
        ship_model(WORK / f"digits-{row}-{seed}" / "model", folder / name, record)
    write_questions(folder / QUESTIONS.name)


def ship_model(trained: Path, folder: Path, record: dict[str, Any]) -> None:
    """A copy of a trained model in float16, ready for ``from_pretrained``."""
    from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration, LlavaVRProcessor

    shutil.rmtree(folder, ignore_errors=True)
    model: Any = LlavaVRForConditionalGeneration.from_pretrained(trained)
    model.half().save_pretrained(folder)
    processor: Any = LlavaVRProcessor.from_pretrained(trained)
    processor.save_pretrained(folder)
    shipped: Any = LlavaVRForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    images = record["test_images"]
    said = {
        "what": record["what"],
        "command": record["command"],
        "trained": {name: record[name] for name in ("date", "device", "versions", "accuracy")},
        "test_images": images,
        "accuracy": {part: generated_accuracy(shipped, processor, part, images) for part in ("seen", "unseen")},
        **environment("cpu"),
    }
    write_json(folder / "record.json", said)


def write_questions(folder: Path) -> None:
    """Grids of digits that nothing was trained on, as PNG files, with a question and the true answer each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    questions, digits = [], load_split("unseen")
    for number in range(NUMBER_OF_QUESTIONS):
        grid = draw_grid(digits, TEST_SEED, number)
        name = f"digits-{number}.png"
        Image.fromarray(grid.image).save(folder / name)
        answer = " ".join(map(str, grid.labels[grid.row]))
        questions.append({"image": name, "prompt": f"row {grid.row + 1} :", "answer": answer})
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")
