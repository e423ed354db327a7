"""One run, a row with a seed: built, trained or gone on with, measured, recorded."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.reproduction.cost import costs
from examples.reproduction.digits import SIDE, draw_grid, load_split
from examples.reproduction.encoder import FOLDER as ENCODER
from examples.reproduction.model import build_model, build_processor
from examples.reproduction.records import RECORDS, ROOT, Record, environment, read_record, record_path, write_json
from examples.reproduction.rows import ROWS, runs
from examples.reproduction.training import Recipe, question, train_row

TASKS = ("digits",)
WORK = ROOT / "build" / "reproduction"  # checkpoints, and the trained models
TEST_IMAGES, TEST_SEED = 1000, 2000  # no training and no learning curve has this seed


def run(
    task: str,
    row: str,
    seed: int,
    *,
    recipe: Recipe | None = None,
    records: Path = RECORDS,
    work: Path = WORK,
    encoder: Path = ENCODER,
    test_images: int = TEST_IMAGES,
) -> Record:
    """Makes the record of a row and seed; a run that was killed goes on from its last checkpoint.

    Raises:
        ValueError: an unknown task or row; a seed that the test grids have; checkpoints of other settings.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; it must be {' or '.join(map(repr, TASKS))}")
    if row not in ROWS:
        raise ValueError(f"row is {row!r}; it must be one of {', '.join(ROWS)}")
    if not 0 <= seed < 1000:
        raise ValueError(f"seed is {seed}; it must be 0 to 999: larger ones draw what is tested on")
    recipe = recipe or Recipe()
    folder = work / f"{task}-{row}-{seed}"
    settings = {
        "changes": ROWS[row].changes,
        "features": ROWS[row].features,
        "recipe": asdict(recipe),
        "encoder_sha256": hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest(),
    }
    _check_settings(folder, settings)
    model = build_model(ROWS[row], seed, encoder)
    n_h, n_w = model.config.token_grid
    trained = train_row(model, n_h * n_w, recipe, seed, folder)
    model.eval()
    processor = build_processor(model.config)
    accuracy = {part: generated_accuracy(model, processor, part, test_images) for part in ("seen", "unseen")}
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    record = {
        "task": task,
        "row": row,
        "seed": seed,
        "command": f"python -m examples.reproduction --task {task} --row {row} --seed {seed}",
        "what": ROWS[row].what,
        **settings,
        "config": model.config.to_diff_dict(),
        "accuracy": accuracy,
        "test_images": test_images,
        "cost": costs(model, folder / "model"),
        **trained,
        **environment(model.device.type),
    }
    write_json(record_path(task, row, seed, records), record)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A run goes on only under the settings that it began with."""
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, settings)
    for name, value in read_record(path).items():
        if value != settings[name]:
            raise ValueError(f"{folder} holds a run with {name} {value}, not {settings[name]}; delete it to begin anew")


def run_missing(task: str) -> None:
    """Run after run, until each has its record. Several processes may do so side by side, each with runs of its own.

    A run that fails does not keep the others waiting; SystemExit names it in the end.
    """
    failed = []
    for row, seed in runs():
        folder = WORK / f"{task}-{row}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another process has it
            if record_path(task, row, seed).exists():
                continue
            try:
                print(f"{row}, seed {seed}: {run(task, row, seed)['accuracy']}", flush=True)
            except Exception:
                traceback.print_exc()
                failed.append(f"{row} seed {seed}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


@torch.no_grad()
def generated_accuracy(model: Any, processor: Any, part: str, images: int, batch: int = 100) -> float:
    """The share of digits that are right in greedy answers, given place by place; a digit not given is wrong."""
    from PIL import Image

    digits, right = load_split(part), 0
    for first in range(0, images, batch):
        grids = [draw_grid(digits, TEST_SEED, number) for number in range(first, min(first + batch, images))]
        inputs = processor(
            images=[Image.fromarray(grid.image).convert("RGB") for grid in grids],
            text=[question(grid, 1) for grid in grids],
            return_tensors="pt",
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=SIDE + 1, do_sample=False)
        answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(_right(answer, grid.labels[grid.row]) for answer, grid in zip(answers, grids, strict=True))
    return right / (images * SIDE)


def _right(answer: str, digits: Any) -> int:
    return sum(given == str(digit) for given, digit in zip(answer.split(), digits, strict=False))
