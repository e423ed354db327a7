"""FastV, PyramidDrop and SparseVLM here, with the weights and inputs that their authors' code was run with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from examples.agreement.compare import Row, name_of, relative_error
from vr_kernels import apply_pruning

SAME = 1e-3  # hidden states of other tokens are a tenth apart and more


def rows(method: str, cases: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for case in cases:
        ours = hidden_states(method.lower(), case)
        errors = [apart(ours, run) for run in case["runs"]]
        close = [error for error in errors if error < SAME]
        runs = case["runs"]
        yield Row(
            method,
            f"{tuple(case['inputs'].shape[:2])}, {', '.join(f'{k} {v}' for k, v in case['options'].items())}",
            name_of(case["inputs"].dtype),
            max(close, default=None),
            variant=case.get("variant", ""),
            same=len(close),
            runs=len(runs),
            own=sum(apart(runs[i - 1], run) < SAME for i, run in enumerate(runs)) if len(runs) > 1 else None,
        )


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest error of all layers, of the prompt and of the token after it."""
    if [part.shape for part in ours] != [part.shape for part in theirs]:
        return float("inf")
    return max(relative_error(*pair) for pair in zip(ours, theirs, strict=True))


@torch.no_grad()
def hidden_states(method: str, case: dict[str, Any]) -> list[Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    inputs = case["inputs"]
    width, intermediate = inputs.shape[2], case["weights"]["model.layers.0.mlp.gate_proj.weight"].shape[0]
    config = LlamaConfig(
        hidden_size=width, intermediate_size=intermediate, num_attention_heads=4, vocab_size=99,
        max_position_embeddings=2048, **case["config"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(inputs.dtype).eval()
    answer = model.load_state_dict(case["weights"], strict=False)
    if answer.unexpected_keys or set(answer.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{method}: the weights do not fit: {answer}")
    apply_pruning(model, method, **case["options"])
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda m, a, out: outputs.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    vision = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    vision[:, slice(*case["span"])] = True
    first = model.model(inputs_embeds=inputs, vision_mask=vision, use_cache=True)
    if "next" in case:
        model.model(inputs_embeds=case["next"], past_key_values=first.past_key_values, use_cache=True)
    return outputs
