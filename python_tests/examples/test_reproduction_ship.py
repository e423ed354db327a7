"""What is shipped: a trained model in half precision that answers as it did, and questions with their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from examples.reproduction import digits, model, records, rows, ship, tasks
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


def test_the_seed_whose_pooled_model_is_best_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no seed of digits has records of pool and full"):
        ship.seed_to_ship("digits", tmp_path)
    for row, seed, unseen in (("pool", 0, 0.4), ("full", 0, 0.9), ("pool", 1, 0.6), ("full", 1, 0.7), ("pool", 2, 0.8)):
        path = records.record_path("digits", row, seed, tmp_path)
        records.write_json(path, {"accuracy": {"seen": 1 - unseen, "unseen": unseen}})
    assert ship.seed_to_ship("digits", tmp_path) == 1  # of seed 2 there is one half


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
