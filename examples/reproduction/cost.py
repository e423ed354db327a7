"""What a model costs: parameters, arithmetic, and the time and memory of a prefill."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from examples.reproduction.digits import IMAGE_PIXELS
from examples.reproduction.model import IMAGE, WORDS
from vr_kernels.cli.measure.memory import Call, Unknown, peak_memory

REPEATS = 30


def costs(model: Any, folder: Path) -> dict[str, Any]:
    """Of one image and question, up to the first token of the answer. The folder holds the model."""
    device = model.device.type
    memory: int | str
    try:
        memory = peak_memory(f"{__name__}:prefill_call", {"folder": str(folder), "device": device}, device)["prefill"]
    except Unknown as reason:
        memory = str(reason)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "prefill_flops": sum(prefill_flops(model).values()),
        "ttft": time_to_first_token(model),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "prefill_bytes": memory,
    }


def prefill_flops(model: Any) -> dict[str, int]:
    """By part, two for each multiply-accumulate.

    A matrix counts with every row it must multiply, attention with its two products over all pairs. Local attention
    counts in its absorbed form, as the operators compute it: keys and values are projected on the token's side. Left
    out: norms, activations, softmax, embeddings, the sampling of deformable attention.
    """
    config = model.config
    vision, text = config.vision_config, config.text_config
    patches = config.feature_grid[0] * config.feature_grid[1]
    image_tokens = config.token_grid[0] * config.token_grid[1]
    length = prompt(model).shape[1]
    rows = {"vision_tower": patches, "multi_modal_projector": image_tokens, "language_model": length, "lm_head": 1}
    flops = dict.fromkeys((*rows, "vision_remember"), 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embed_tokens" in name or "position_embedding" in name:
            continue
        part = "vision_remember" if "vision_remember" in name else next(part for part in rows if part in name)
        of_features = (config.vr_interaction == "global" and name.endswith(("key_weight", "value_weight"))) or (
            config.vr_interaction == "deformable" and "value_proj" in name
        )
        multiplied = (patches if of_features else image_tokens) if part == "vision_remember" else rows[part]
        flops[part] += 2 * multiplied * parameter.numel()
    flops["vision_tower"] += vision.num_hidden_layers * 4 * patches**2 * vision.hidden_size
    flops["language_model"] += text.num_hidden_layers * 4 * length**2 * text.hidden_size
    if config.vr_layers:
        block = config.vision_remember
        heads, head_dim = block.heads
        channels, window = sum(block.feature_dims), config.vr_window[0] * config.vr_window[1]
        pairs = {"local": window * channels, "global": patches * head_dim, "deformable": 0}[block.interaction]
        each = 4 * image_tokens * heads * pairs
        if "bidirectional" in block.layers:
            each += 4 * image_tokens * (image_tokens + 1) * text.hidden_size
        flops["vision_remember"] += len(config.vr_layers) * each
    return flops


def time_to_first_token(model: Any) -> dict[str, float]:
    """Milliseconds of ``generate`` for one token: the median, and the middle 80 %.

    On the processor it is the time this process computed, so that a busy machine is not measured.
    """
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    call = prefill(model)
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        before = clock()
        call()
        times.append((clock() - before) * 1e3)
    deciles = statistics.quantiles(times, n=10)
    return {"median_ms": statistics.median(times), "low_ms": deciles[0], "high_ms": deciles[-1]}


def prompt(model: Any) -> torch.Tensor:
    image_tokens = model.config.token_grid[0] * model.config.token_grid[1]
    words = [WORDS.index(word) for word in ("row", "1", ":")]
    return torch.tensor([[IMAGE] * image_tokens + words], device=model.device)


def prefill(model: Any) -> Any:
    pixels = torch.zeros(1, 3, IMAGE_PIXELS, IMAGE_PIXELS, device=model.device)
    ids = prompt(model)

    def call() -> None:
        model.generate(ids, pixel_values=pixels, max_new_tokens=1, do_sample=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return call


def prefill_call(folder: str, device: str) -> dict[str, Call]:
    """For ``peak_memory``, which calls it in a process of its own; a pass of text alone loads the code first."""
    from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration

    model = LlavaVRForConditionalGeneration.from_pretrained(folder).to(device).eval()
    text = prompt(model)[:, -3:]
    return {"prefill": Call(lambda: model.generate(text, max_new_tokens=1, do_sample=False), prefill(model))}
