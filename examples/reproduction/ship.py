"""The small trained models that the repository ships, and the questions that go with them, for the demo and the page.

Weights are written in half precision, a few MB in all; the record beside each says what that did to its answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.reproduction.records import MODELS, RECORDS, Record, environment, read_record, record_path, write_json
from examples.reproduction.rows import SEEDS
from examples.reproduction.run import TEST_SEED, WORK, generated_accuracy
from examples.reproduction.task import PARTS, Task
from examples.reproduction.tasks import find_task

SHIPPED = {"pooled": "pool", "vision-remember": "full"}  # by the end of its folder's name, a row
WORDS = 36  # of all answers: as many questions as have them


def ship(name: str, folder: Path = MODELS) -> None:
    """Writes both models of a task from their finished runs, and the questions.

    Raises:
        ValueError: an unknown task; no seed with records of both.
        FileNotFoundError: the trained models of that seed are not in ``build/reproduction``.
    """
    task, seed = find_task(name), seed_to_ship(name)
    for ending, row in SHIPPED.items():
        record = read_record(record_path(name, row, seed))
        ship_model(task, WORK / f"{name}-{row}-{seed}" / "model", folder / f"{name}-{ending}", record)
    write_questions(task, folder / f"{name}-questions")


def seed_to_ship(task: str, records: Path = RECORDS) -> int:
    """The seed whose pooled model answers best on what is unseen: bad luck of its training must not flatter ours."""
    accuracy = {}
    for seed in SEEDS:
        paths = {row: record_path(task, row, seed, records) for row in SHIPPED.values()}
        if all(path.exists() for path in paths.values()):
            accuracy[seed] = read_record(paths[SHIPPED["pooled"]])["accuracy"]["unseen"]
    if not accuracy:
        raise ValueError(
            f"ship: no seed of {task} has records of {' and '.join(SHIPPED.values())}; 'missing' runs them"
        )
    return max(accuracy, key=lambda seed: accuracy[seed])


def ship_model(task: Task, trained: Path, folder: Path, record: Record) -> None:
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
        "trained": {key: record[key] for key in ("date", "device", "versions", "accuracy")},
        "test_images": images,
        "accuracy": {part: generated_accuracy(task, shipped, processor, part, images) for part in PARTS},
        **environment("cpu"),
    }
    write_json(folder / "record.json", said)


def write_questions(task: Task, folder: Path) -> None:
    """Images of what nothing was trained on, as PNG files, with a question and the true answer each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    questions = []
    for number in range(WORDS // task.answer_words):
        sample = task.draw(number, TEST_SEED, "unseen")
        image = f"{task.name}-{number}.png"
        Image.fromarray(sample.image).save(folder / image)
        questions.append({"image": image, "prompt": " ".join(sample.question), "answer": " ".join(sample.answer)})
    write_json(folder / "questions.json", {"asked": task.asked, "unit": task.unit, "questions": questions})
