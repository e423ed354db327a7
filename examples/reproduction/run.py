"""One run, a row with a seed: built, trained or gone on with, measured, recorded."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.reproduction.cost import costs
from examples.reproduction.encoder import encoder_folder
from examples.reproduction.kept_features import can_keep, kept_features
from examples.reproduction.model import build_model, build_processor, load_model, question, row_config
from examples.reproduction.pruning import placeholder_grid
from examples.reproduction.records import (
    RECORDS,
    ROOT,
    Record,
    code_version,
    environment,
    read_record,
    record_path,
    write_json,
)
from examples.reproduction.rows import BASE, ROWS, runs
from examples.reproduction.task import PARTS, Task
from examples.reproduction.tasks import find_task
from examples.reproduction.training import Recipe, train_row

WORK = ROOT / "build" / "reproduction"  # checkpoints, and the trained models
SETTINGS, CODE = "settings.json", "code"  # what a run began with
TEST_IMAGES, TEST_SEED = 1000, 2000  # no training and no learning curve has this seed


def run(
    task: str,
    row: str,
    seed: int,
    *,
    recipe: Recipe | None = None,
    records: Path = RECORDS,
    work: Path = WORK,
    encoder: Path | None = None,
    test_images: int = TEST_IMAGES,
    keep_features: bool = False,
    unless_recorded: bool = False,
) -> Record:
    """Makes the record of a row and seed; a run that was killed goes on from its last checkpoint.

    Args:
        keep_features: of the encoder, below ``work``, for the next rows of the seed (see ``kept_features``).
        unless_recorded: a record that is there is the answer.

    Raises:
        ValueError: an unknown task or row; a seed that the tests have; checkpoints of other settings; a model to prune
            that is not there, or of other settings. Busy: another process runs it.
    """
    found = find_task(task)
    if row not in ROWS:
        raise ValueError(f"row is {row!r}; it must be one of {', '.join(ROWS)}")
    if not 0 <= seed < 1000:
        raise ValueError(f"seed is {seed}; it must be 0 to 999: larger ones draw what is tested on")
    recipe, encoder = recipe or Recipe(), encoder or encoder_folder(found)
    folder, pruning = work / f"{task}-{row}-{seed}", ROWS[row].pruning
    sha256 = hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest()
    settings = {
        "changes": ROWS[row].changes,
        "features": ROWS[row].features,
        "decoder": ROWS[row].decoder,
        "blocks": ROWS[row].blocks,
        "pruning": None if pruning is None else pruning._asdict(),
        "recipe": asdict(recipe),
        "encoder_sha256": sha256,
    }
    with _claimed(folder):
        if unless_recorded and record_path(task, row, seed, records).exists():
            return read_record(record_path(task, row, seed, records))
        begun_with = _check_settings(folder, settings)
        if pruning is None:
            weights = folder / "model"
            kept = work / "features" / f"{task}-{seed}-{sha256[:8]}" if keep_features else None
            model, trained = _train(found, row, seed, recipe, folder, encoder, kept)
        else:
            base = work / f"{task}-{BASE}-{seed}"
            weights = base / "model"
            model, trained = _prune(found, row, seed, base, settings)
        config = row_config(found, ROWS[row])
        processor = build_processor(found, config, placeholder_grid(config.token_grid, pruning))
        accuracy = {part: generated_accuracy(found, model, processor, part, test_images) for part in PARTS}
        if pruning is None:
            model.save_pretrained(weights)
            processor.save_pretrained(weights)
        record = {
            "task": task,
            "row": row,
            "seed": seed,
            "command": f"python -m examples.reproduction --task {task} --row {row} --seed {seed}"
            + keep_features * " --keep-features",
            "what": ROWS[row].what,
            **settings,
            "config": config.to_diff_dict(),
            "accuracy": accuracy,
            "test_images": test_images,
            "cost": costs(found, ROWS[row], model, weights),
            **trained,
            "begun_with_code": begun_with,
            **environment(model.device.type),
        }
        write_json(record_path(task, row, seed, records), record)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return record


def _train(
    task: Task, row: str, seed: int, recipe: Recipe, folder: Path, encoder: Path, kept: Path | None
) -> tuple[Any, dict[str, Any]]:
    model = build_model(task, ROWS[row], seed, encoder)
    n_h, n_w = model.config.token_grid
    with kept_features(model.model.vision_tower, kept) if kept and can_keep(model.config) else nullcontext():
        trained = train_row(task, model, n_h * n_w, recipe, seed, folder)
    return model.eval(), trained


def _prune(task: Task, row: str, seed: int, base: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model of another row, whose tokens are dropped: there is no curve of it."""
    if not (base / "model" / "model.safetensors").exists():
        raise ValueError(
            f"{row} prunes the trained {BASE} of seed {seed}, and {base} does not hold it; train that first, with "
            f"python -m examples.reproduction --task {task.name} --row {BASE} --seed {seed}"
        )
    trained_with = read_record(base / SETTINGS)
    for name in ("recipe", "encoder_sha256"):
        if trained_with[name] != settings[name]:
            raise ValueError(
                f"{row} prunes a {BASE} with {name} {settings[name]}, and that in {base} has {trained_with[name]}; "
                "delete it and train it anew"
            )
    return load_model(task, ROWS[row], base / "model"), {
        "curve": [],
        "loss": [],
        "wall_seconds": 0.0,
        "processor_seconds": 0.0,
    }


class Busy(Exception):
    """Another process has the run."""


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder} is another process's run; wait for it") from None
        yield


def _check_settings(folder: Path, settings: dict[str, Any]) -> str | None:
    """A run goes on only under the settings that it began with. Returns the code that it began with."""
    path = folder / SETTINGS
    if not path.exists():
        if list(folder.glob("checkpoint-*")):
            raise ValueError(f"{folder} holds checkpoints and no {SETTINGS}; delete it to begin anew")
        write_json(path, {**settings, CODE: code_version()})
    begun = read_record(path)
    code: str | None = begun.pop(CODE, None)
    for name, value in begun.items():
        if value != settings[name]:
            raise ValueError(f"{folder} holds a run with {name} {value}, not {settings[name]}; delete it to begin anew")
    return code


def run_missing(task: str, *, keep_features: bool = False) -> None:
    """Run after run, until each has its record. Several processes may do so side by side, each with runs of its own.

    A run that fails does not keep the others waiting; SystemExit names it in the end.
    """
    failed = []
    for row, seed in runs(find_task(task).tables):
        if record_path(task, row, seed).exists():
            continue
        base = WORK / f"{task}-{BASE}-{seed}"
        try:
            if ROWS[row].pruning is not None and not (base / "model" / "model.safetensors").exists():
                # A record of it may have come from elsewhere, and stays.
                run(task, BASE, seed, records=WORK / "records", keep_features=keep_features)
            record = run(task, row, seed, keep_features=keep_features, unless_recorded=True)
            print(f"{row}, seed {seed}: {record['accuracy']}", flush=True)
        except Busy as reason:
            print(f"{row}, seed {seed}: {reason}", flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(f"{row} seed {seed}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


@torch.no_grad()
def generated_accuracy(task: Task, model: Any, processor: Any, part: str, images: int, batch: int = 100) -> float:
    """The share of words that are right in greedy answers, given place by place; a word not given is wrong."""
    from PIL import Image

    right = 0
    for first in range(0, images, batch):
        samples = [task.draw(number, TEST_SEED, part) for number in range(first, min(first + batch, images))]
        inputs = processor(
            images=[Image.fromarray(sample.image) for sample in samples],
            text=[question(sample, 1) for sample in samples],
            return_tensors="pt",
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=task.answer_words + 1, do_sample=False)
        answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(_right(answer, sample.answer) for answer, sample in zip(answers, samples, strict=True))
    return right / (images * task.answer_words)


def _right(answer: str, words: tuple[str, ...]) -> int:
    return sum(given == word for given, word in zip(answer.split(), words, strict=False))
