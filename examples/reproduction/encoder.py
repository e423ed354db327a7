"""The vision encoder: a small SigLIP tower that learns by itself to name the digit at each patch, and is then frozen.

It has seen no digit image of the unseen part. Each digit covers 2x2 patches; every patch is a training example.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.reproduction.digits import DIGIT_PIXELS, IMAGE_PIXELS, SIDE, Array, Digits, load_split, tile
from examples.reproduction.records import MODELS, environment, write_json

PATCH = 4
FOLDER = MODELS / "digits-encoder"

GRID = IMAGE_PIXELS // PATCH
STEPS, BATCH, LEARNING_RATE = 2000, 16, 2e-3


def tower_config() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )


def normalised(images: Array) -> Tensor:
    """(B, 48, 48) uint8 to (B, 3, 48, 48), as SigLIP's image processor makes it."""
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def train_encoder(
    folder: Path = FOLDER, *, steps: int = STEPS, seed: int = 0, test_images: int = 500
) -> dict[str, Any]:
    """Trains the tower, writes it for ``from_pretrained``, and returns its record, which stands beside it.

    Its accuracy is measured on ``test_images`` grids of each part.
    """
    from transformers import SiglipVisionModel

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    tower = SiglipVisionModel(tower_config())
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.copy_(_places(tower.config.hidden_size))
    head = nn.Linear(tower.config.hidden_size, 10)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    seen, began = load_split("seen"), time.monotonic()
    for step in range(1, steps + 1):
        pixels, labels = _batch(seen, random, BATCH)
        images = tile(_varied(pixels, random))
        loss = F.cross_entropy(_logits(tower, head, _noisy(images, random)).flatten(0, 2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)
    record = {
        "command": "python -m examples.reproduction encoder",
        "config": {"steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "seed": seed},
        "patch_accuracy": {
            part: patch_accuracy(tower, head, load_split(part), test_images) for part in ("seen", "unseen")
        },
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "wall_seconds": round(time.monotonic() - began, 1),
        **environment("cpu"),
    }
    tower.save_pretrained(folder)
    write_json(folder / "record.json", record)
    return record


def patch_accuracy(tower: nn.Module, head: nn.Module, digits: Digits, images: int) -> float:
    """The share of patches whose digit is named rightly, in grids that were not trained on."""
    pixels, labels = _batch(digits, np.random.default_rng(1), images)
    with torch.no_grad():
        named = torch.cat([_logits(tower, head, part).argmax(-1) for part in normalised(tile(pixels)).split(100)])
    return float((named == labels).float().mean())


def _logits(tower: nn.Module, head: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 12, 12, 10)"""
    logits: Tensor = head(tower(pixels).last_hidden_state).unflatten(1, (GRID, GRID))
    return logits


def _batch(digits: Digits, random: np.random.Generator, size: int) -> tuple[Array, Tensor]:
    """(size, 6, 6, 8, 8) digits of images, and the digit at each of their patches, (size, 12, 12)."""
    chosen = random.integers(len(digits.labels), size=(size, SIDE, SIDE))
    labels = digits.labels[chosen].repeat(DIGIT_PIXELS // PATCH, 1).repeat(DIGIT_PIXELS // PATCH, 2)
    return digits.pixels[chosen], torch.from_numpy(labels)


def _varied(pixels: Array, random: np.random.Generator) -> Array:
    """(..., 8, 8) digits, each turned, slanted, scaled and moved a little.

    There are few, and a tower that sees them as they are learns them by heart.
    """
    count = pixels[..., 0, 0].size
    angle, slant, wide, high = random.uniform(-1, 1, size=(4, count)) * [[0.1], [0.1], [0.1], [0.1]]
    cosine, sine = np.cos(angle), np.sin(angle)
    turns = np.stack([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1)  # (count, 2, 2)
    shapes = np.stack([[1 + wide, slant], [0 * slant, 1 + high]]).transpose(2, 0, 1)
    moves = random.uniform(-0.1, 0.1, size=(count, 2, 1))  # of half a digit
    maps = torch.from_numpy(np.concatenate([turns @ shapes, moves], -1)).float()
    digits = torch.from_numpy(pixels).float().view(count, 1, *pixels.shape[-2:])
    places = F.affine_grid(maps, list(digits.shape), align_corners=False)
    varied = F.grid_sample(digits, places, align_corners=False)
    return varied.round().to(torch.uint8).view(pixels.shape).numpy()


def _noisy(images: Array, random: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(random.standard_normal(images.shape)).float()[:, None]
    return normalised(images) + 0.1 * noise


def _places(width: int) -> Tensor:
    """(144, width), how a patch's place starts: Fourier waves of its digit's row and column, and its place in the
    digit, in directions drawn at random.

    Learned places that start as noise have nothing in common: which patches share a digit is then learned place by
    place, and takes ten times the steps.
    """
    patch = torch.arange(GRID)
    angles = (patch // 2) * (2 * torch.pi / SIDE)
    waves = [wave(k * angles) for k in range(1, SIDE // 2 + 1) for wave in (torch.cos, torch.sin)]
    basis = torch.stack([*waves[:-1], patch % 2 - 0.5], 1)  # (12, 6); the last sine is zero
    both = torch.cat([basis.repeat_interleave(GRID, 0), basis.repeat(GRID, 1)], 1)  # (144, 12)
    directions: Tensor = torch.linalg.qr(torch.randn(width, both.shape[1])).Q
    start: Tensor = both @ directions.mT
    return start
