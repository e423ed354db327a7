"""What a model costs: parameters, arithmetic, and the memory of a prefill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from examples.reproduction.model import IMAGE, load_model, row_config, vocabulary
from examples.reproduction.pruning import tokens_by_layer
from examples.reproduction.rows import ROWS, Row
from examples.reproduction.task import Task
from examples.reproduction.tasks import find_task
from vr_kernels.cli.measure.memory import Call, Unknown, peak_memory

# Parameters that multiply every feature, where the others of their part multiply every token; by what they belong to.
OF_FEATURES: dict[str, tuple[str, ...]] = {
    "ldpv2": ("linear_1",),
    "perceiver": ("kv_proj",),
    "token_packer": ("key_in", "key_proj", "value_in", "value_proj"),
    "deformable": ("value_proj",),
    "stf": ("mbtf",),
    "global": ("key_weight", "value_weight"),
    "sva": ("key_projs", "value_projs"),
}
NO_MATRICES = ("embed_tokens", "position_embedding", "positions", "multi_modal_projector.query")


def costs(task: Task, row: Row, model: Any, folder: Path) -> dict[str, Any]:
    """Of one image and question, up to the first token of the answer. The folder holds the weights."""
    device = model.device.type
    arguments = {"task": task.name, "row": next(name for name in ROWS if ROWS[name] is row)}
    memory: int | str
    try:
        arguments |= {"folder": str(folder), "device": device}
        memory = peak_memory(f"{__name__}:prefill_call", arguments, device)["prefill"]
    except Unknown as reason:
        memory = str(reason)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "prefill_flops": sum(prefill_flops(task, row, model).values()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "prefill_bytes": memory,
    }


def image_tokens(task: Task, row: Row) -> list[int]:
    """How many image tokens each layer of the decoder sees."""
    return tokens_by_layer(math.prod(row_config(task, row).token_grid), row.pruning)


def prefill_flops(task: Task, row: Row, model: Any) -> dict[str, int]:
    """By part, two for each multiply-accumulate.

    A matrix counts with every row it must multiply, attention with its two products over all pairs. Local attention
    counts in its absorbed form, as the operators compute it: keys and values are projected on the token's side. Left
    out: norms, activations, softmax, embeddings, the sampling of deformable attention, what a pruning method does to
    choose.
    """
    config = row_config(task, row)
    vision, text = config.vision_config, config.text_config
    patches, tokens = math.prod(config.feature_grid), math.prod(config.token_grid)
    by_layer = image_tokens(task, row)
    projected = tokens if row.pruning is None else by_layer[0]
    lengths = [count + len(_question(task)) for count in by_layer]
    parts = {"vision_tower": patches, "multi_modal_projector": projected, "lm_head": 1}
    flops = dict.fromkeys((*parts, "language_model", "vision_remember"), 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or any(f"{other}." in f"{name}." for other in NO_MATRICES):
            continue
        if "vision_remember" in name:
            part, of_features = "vision_remember", OF_FEATURES.get(_block_kind(row, config), ())
            multiplied = patches if any(f".{weight}" in name for weight in of_features) else tokens
            multiplied = 1 if "proj_context" in name else multiplied  # SVA's mean of the image
        elif "language_model" in name:
            part, multiplied = "language_model", lengths[int(name.split("layers.")[1].split(".")[0])]
        else:
            part = next(part for part in parts if part in name)
            of_features = OF_FEATURES.get(config.projector_type, ()) if part == "multi_modal_projector" else ()
            multiplied = patches if any(f".{weight}" in name for weight in of_features) else parts[part]
        flops[part] += 2 * multiplied * parameter.numel()
    flops["vision_tower"] += vision.num_hidden_layers * 4 * patches**2 * vision.hidden_size
    flops["language_model"] += sum(4 * length**2 * text.hidden_size for length in lengths)
    flops["multi_modal_projector"] += _projector_attention(config, patches, tokens)
    flops["vision_remember"] += _block_attention(row, config, patches, tokens)
    return flops


def _block_kind(row: Row, config: Any) -> str:
    return str(config.vr_interaction) if row.blocks == "vision_remember" else row.blocks


def _projector_attention(config: Any, patches: int, tokens: int) -> int:
    """What projectors multiply beyond each of their matrices once a row."""
    vision: int = config.vision_config.hidden_size
    text: int = config.text_config.hidden_size
    window: int = math.prod(config.vr_window)
    if config.projector_type == "perceiver":  # keys and values are two thirds of one matrix that is counted by token
        return 2 * (patches - tokens) * 2 * text**2 + 4 * tokens * patches * text
    return 4 * tokens * window * vision if config.projector_type == "token_packer" else 0


def _block_attention(row: Row, config: Any, patches: int, tokens: int) -> int:
    """The products of attention in all blocks."""
    if not config.vr_layers or row.blocks == "deepstack":
        return 0
    text: int = config.text_config.hidden_size
    window: int = math.prod(config.vr_window)
    levels, number = len(config.vr_levels), len(config.vr_layers)
    if row.blocks == "sva":
        return number * 4 * tokens * window * levels * text
    block = config.vision_remember
    heads, head_dim = block.heads
    pairs = {"local": window * sum(block.feature_dims), "global": patches * head_dim, "deformable": 0}
    each: int = 4 * tokens * heads * pairs[block.interaction]
    if "bidirectional" in block.layers:
        each += 4 * tokens * (tokens + 1) * text
    return number * each


def _question(task: Task) -> list[int]:
    return [vocabulary(task).index(word) for word in task.draw(0, 0, "seen").question]


def prompt(task: Task, row: Row, model: Any) -> torch.Tensor:
    return torch.tensor([[IMAGE] * image_tokens(task, row)[0] + _question(task)], device=model.device)


def prefill(task: Task, row: Row, model: Any) -> Callable[[], None]:
    """``generate`` of one token."""
    pixels = torch.zeros(1, 3, task.image_pixels, task.image_pixels, device=model.device)
    ids = prompt(task, row, model)

    def call() -> None:
        model.generate(ids, pixel_values=pixels, max_new_tokens=1, do_sample=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return call


def prefill_call(task: str, row: str, folder: str, device: str) -> dict[str, Call]:
    """For ``peak_memory``, which calls it in a process of its own; a pass of text alone loads the code first."""
    found = find_task(task)
    model = load_model(found, ROWS[row], Path(folder)).to(device)
    text = prompt(found, ROWS[row], model)[:, -len(_question(found)) :]
    return {
        "prefill": Call(
            lambda: model.generate(text, max_new_tokens=1, do_sample=False), prefill(found, ROWS[row], model)
        )
    }
