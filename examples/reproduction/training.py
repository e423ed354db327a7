"""The training of one row: drawn samples, the package's trainer, checkpoints that a killed run goes on from."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from examples.reproduction.encoder import normalised
from examples.reproduction.model import EOS, IMAGE, vocabulary
from examples.reproduction.task import PARTS, Sample, Task
from vr_kernels.models.inference import IGNORED
from vr_kernels.models.training.trainer import VisionLanguageTrainer

CURVE_SEED = 1000  # those of trainings are smaller


@dataclass(frozen=True)
class Recipe:
    """What all rows of the tables share."""

    steps: int = 4000
    batch: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    save_steps: int = 100
    curve_steps: int = 200  # from one point of the learning curve to the next
    curve_images: int = 200


class SampleDataset(Dataset[dict[str, Tensor]]):
    """Samples of an endless stream, as many as are asked for, with as many image tokens as the model makes."""

    def __init__(self, task: Task, part: str, *, seed: int, length: int, image_tokens: int) -> None:
        self.task, self.part, self.seed, self.length, self.image_tokens = task, part, seed, length, image_tokens

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return encode(self.task, self.task.draw(number, self.seed, self.part), self.image_tokens)


def encode(task: Task, sample: Sample, image_tokens: int) -> dict[str, Tensor]:
    """What a model is trained on; no two samples of a task differ in length."""
    tokens = {word: token for token, word in enumerate(vocabulary(task))}
    prompt = [IMAGE] * image_tokens + [tokens[word] for word in sample.question]
    answer = [*(tokens[word] for word in sample.answer), EOS]
    return {
        "input_ids": torch.tensor(prompt + answer),
        "labels": torch.tensor([IGNORED] * len(prompt) + answer),
        "pixel_values": normalised(sample.image[None])[0],
    }


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class RowTrainer(VisionLanguageTrainer):
    """The package's trainer with the optimizer of transformers' own, for all parameters have one learning rate."""

    create_optimizer = Trainer.create_optimizer


class LearningCurve(TrainerCallback):
    """The accuracy on both parts every so many steps, and the seconds that the training took, over its interruptions:
    by the clock, and of the processor's time, which a busy machine does not stretch.

    Kept in the trainer's own log, and so in its checkpoints.
    """

    def __init__(self, task: Task, recipe: Recipe, image_tokens: int) -> None:
        self.recipe, self.answer_words = recipe, task.answer_words
        self.clocks = {"wall_seconds": time.monotonic, "processor_seconds": time.process_time}
        self.began = dict.fromkeys(self.clocks, 0.0)
        self.samples = {}
        for part in PARTS:
            samples = SampleDataset(task, part, seed=CURVE_SEED, length=recipe.curve_images, image_tokens=image_tokens)
            self.samples[part] = collate([samples[number] for number in range(len(samples))])

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        spent = _spent(state.log_history)
        self.began = {name: clock() - spent.get(name, 0.0) for name, clock in self.clocks.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.recipe.curve_steps == 0 or step == self.recipe.steps:
            model = kwargs["model"]
            accuracies = {
                part: forced_accuracy(model, samples, self.answer_words) for part, samples in self.samples.items()
            }
            state.log_history.append({"step": step, "curve": accuracies})
        if step % self.recipe.save_steps == 0 or step == self.recipe.steps:
            spent = {name: round(clock() - self.began[name], 1) for name, clock in self.clocks.items()}
            state.log_history.append({"step": step, "spent": spent})


def _spent(log: list[dict[str, Any]]) -> dict[str, float]:
    """What the last line of the log that tells it says."""
    return next((line["spent"] for line in reversed(log) if "spent" in line), {})


@torch.no_grad()
def forced_accuracy(model: Any, samples: dict[str, Tensor], words: int) -> float:
    """The share of the answers' words that are right where those before them are given; an answer has so many."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    right = []
    for first in range(0, len(samples["input_ids"]), 50):
        batch = {name: tensor[first : first + 50].to(device) for name, tensor in samples.items()}
        labels = batch["labels"][:, -words - 1 : -1]
        logits = model(**batch).logits[:, -words - 2 : -2]  # each one place before its word
        right.append((logits.argmax(-1) == labels).float())
    model.train(training)
    return float(torch.cat(right).mean())


def train_row(task: Task, model: Any, image_tokens: int, recipe: Recipe, seed: int, folder: Path) -> dict[str, Any]:
    """Trains the model in place, from the folder's last checkpoint where there is one.

    Returns:
        The learning curve, the loss by step, and the seconds it took.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        max_steps=recipe.steps,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        save_steps=recipe.save_steps,
        logging_steps=recipe.save_steps,
        train_sampling_strategy="sequential",  # the stream is drawn at random, and so the same for all rows of a seed
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        seed=seed,
    )
    trainer = RowTrainer(
        learning_rates={},
        keep=1,
        model=model,
        args=arguments,
        train_dataset=SampleDataset(
            task, "seen", seed=seed, length=recipe.steps * recipe.batch, image_tokens=image_tokens
        ),
        data_collator=collate,
        callbacks=[LearningCurve(task, recipe, image_tokens)],
    )
    last = trainer.last_checkpoint()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    log = trainer.state.log_history
    return {
        "curve": [{"step": line["step"]} | line["curve"] for line in log if "curve" in line],
        "loss": [[line["step"], round(line["loss"], 4)] for line in log if "loss" in line],
        **_spent(log),
    }
