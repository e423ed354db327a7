"""What is shipped: a trained model in half precision that answers as it did, and questions with their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from examples.reproduction import digits, model, rows, ship, tasks
from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import user_message

TASK = tasks.find_task("digits")


def test_a_shipped_model_is_the_trained_one_to_half_precision(tmp_path: Path) -> None:
    trained = model.build_model(TASK, rows.ROWS["full"], 0, None)
    trained.save_pretrained(tmp_path / "trained")
    model.build_processor(TASK, trained.config).save_pretrained(tmp_path / "trained")
    said = dict.fromkeys(("what", "command", "date", "device", "versions"))
    ship.ship_model(TASK, tmp_path / "trained", tmp_path / "shipped", said | {"accuracy": {}, "test_images": 2})

    shipped = Assistant.load(tmp_path / "shipped", dtype="float32").model.state_dict()
    for name, weight in trained.state_dict().items():
        assert torch.equal(shipped[name], weight.half().float()), name
    record = json.loads((tmp_path / "shipped" / "record.json").read_text())
    assert set(record["accuracy"]) == {"seen", "unseen"}


def test_questions_hold_unseen_digits_and_their_names(tmp_path: Path) -> None:
    ship.write_questions(TASK, tmp_path)
    unseen = digits.load_split("unseen")
    questions = json.loads((tmp_path / "questions.json").read_text())["questions"]
    assert len(questions) == 6
    for question in questions:
        pixels = np.asarray(open_image(tmp_path / question["image"]))[..., 0]
        row = int(question["prompt"].split()[1]) - 1
        for place, name in enumerate(question["answer"].split()):
            digit = pixels[row * 8 : row * 8 + 8, place * 8 : place * 8 + 8]
            (found,) = np.unique(unseen.labels[(unseen.pixels == digit).all((1, 2))])
            assert found == int(name)


def test_a_prompt_that_is_typed_is_the_one_that_was_trained(tmp_path: Path) -> None:
    built = model.build_model(TASK, rows.ROWS["pool"], 0, None)
    built.save_pretrained(tmp_path)
    model.build_processor(TASK, built.config).save_pretrained(tmp_path)
    ship.write_questions(TASK, tmp_path / "questions")
    assistant: Any = Assistant.load(tmp_path, dtype="float32")
    question = json.loads((tmp_path / "questions" / "questions.json").read_text())["questions"][2]
    image = open_image(tmp_path / "questions" / question["image"])
    inputs = assistant.inputs([[user_message(question["prompt"], 1)]], [[image]])

    from examples.reproduction.training import encode

    sample = encode(TASK, TASK.draw(2, ship.TEST_SEED, "unseen"), 16)
    assert inputs["input_ids"][0].tolist() == sample["input_ids"][: inputs["input_ids"].shape[1]].tolist()
    torch.testing.assert_close(inputs["pixel_values"].flatten(), sample["pixel_values"].flatten())
