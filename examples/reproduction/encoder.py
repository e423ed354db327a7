"""A task's vision encoder: a small SigLIP tower that learns by itself to name what each patch shows.

It is then frozen. It has seen nothing of the unseen part. Every patch is a training example.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.reproduction.records import MODELS, environment, write_json
from examples.reproduction.task import GRID, PARTS, Array, Task

BATCH, LEARNING_RATE = 16, 2e-3


def encoder_folder(task: Task) -> Path:
    return MODELS / f"{task.encoder}-encoder"


def tower_config(task: Task) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=task.image_pixels,
        patch_size=task.patch_pixels,
        vision_use_head=False,
    )


def normalised(images: Array) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W), as SigLIP's image processor makes it."""
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - 0.5) / 0.5).permute(0, 3, 1, 2)


class PatchNamer(nn.Module):
    """The tower with one Linear a label, which is thrown away after the training."""

    def __init__(self, task: Task) -> None:
        from transformers import SiglipVisionModel

        super().__init__()
        self.tower: Any = SiglipVisionModel(tower_config(task))
        width = self.tower.config.hidden_size
        with torch.no_grad():
            self.tower.embeddings.position_embedding.weight.copy_(places(width, task.cells))
        self.heads = nn.ModuleList(nn.Linear(width, kinds) for kinds in task.labels.values())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to (B, kinds, 12, 12), one a label."""
        features = self.tower(pixels).last_hidden_state.unflatten(1, (GRID, GRID))
        return [head(features).movedim(-1, 1) for head in self.heads]


def train_encoder(
    task: Task, folder: Path | None = None, *, steps: int | None = None, seed: int = 0, test_images: int = 500
) -> dict[str, Any]:
    """Trains the tower, writes it for ``from_pretrained``, and returns its record, which stands beside it.

    Its accuracy is measured on ``test_images`` images of each part.
    """
    folder, steps = folder or encoder_folder(task), steps or task.encoder_steps
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = PatchNamer(task)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(1, steps + 1):
        images, labels = task.patches(random, BATCH, "seen", varied=True)
        logits = model(_noisy(images, random))
        losses = [F.cross_entropy(of, torch.from_numpy(labels[:, i])) for i, of in enumerate(logits)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)
    accuracy = {part: patch_accuracy(model, task, part, test_images) for part in PARTS}
    record = {
        "command": f"python -m examples.reproduction encoder --task {task.encoder}",
        "config": {"steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "seed": seed},
        "patch_accuracy": {part: sum(by_label.values()) / len(by_label) for part, by_label in accuracy.items()},
        "accuracy_by_label": accuracy,
        "parameters": sum(parameter.numel() for parameter in model.tower.parameters()),
        "wall_seconds": round(time.monotonic() - began, 1),
        **environment("cpu"),
    }
    model.tower.save_pretrained(folder)
    write_json(folder / "record.json", record)
    return record


def patch_accuracy(model: PatchNamer, task: Task, part: str, images: int) -> dict[str, float]:
    """The share of patches that are named rightly, by label, in images that were not trained on."""
    drawn, labels = task.patches(np.random.default_rng(1), images, part, varied=False)
    right: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, images, 100):
            logits = model(normalised(drawn[first : first + 100]))
            named = torch.stack([of.argmax(1) for of in logits], 1)  # (B, labels, 12, 12)
            right.append(named == torch.from_numpy(labels[first : first + 100]))
    shares = torch.cat(right).float().mean((0, 2, 3)).tolist()
    return dict(zip(task.labels, shares, strict=True))


def _noisy(images: Array, random: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(random.standard_normal(images.shape[:3])).float()[:, None]
    return normalised(images) + 0.1 * noise


def places(width: int, cells: int) -> Tensor:
    """(144, width), how a patch's place starts: Fourier waves of its cell's row and column, and its place in the cell,
    in directions drawn at random.

    Learned places that start as noise have nothing in common: which patches share a cell is then learned place by
    place, and takes ten times the steps.
    """
    patch, along = torch.arange(GRID), GRID // cells
    angles = (patch // along) * (2 * torch.pi / cells)
    waves = [wave(k * angles) for k in range(1, cells // 2 + 1) for wave in (torch.cos, torch.sin)]
    in_cell = [(patch % along) / (along - 1) - 0.5] if along > 1 else []
    basis = torch.stack([*waves[:-1], *in_cell], 1)  # (12, waves); the last sine is zero
    both = torch.cat([basis.repeat_interleave(GRID, 0), basis.repeat(GRID, 1)], 1)  # (144, 2 * waves)
    directions: Tensor = torch.linalg.qr(torch.randn(width, both.shape[1])).Q
    start: Tensor = both @ directions.mT
    return start
