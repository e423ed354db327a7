"""A decoder of a published size with random weights, and the prompts that go through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Case


@dataclass(frozen=True, kw_only=True)
class PromptCase(Case):
    """A batch of prompts of text, vision tokens and text, read into a cache.

    ``scored``: what comes out at the end is compared too, which differs where tokens are dropped and where not.
    """

    width: int = 896
    inner: int = 4864
    layers: int = 24
    heads: int = 14
    kv_heads: int = 2
    vision: int = 576
    before: int = 14
    behind: int = 50
    layer: int = 2
    keep_ratio: float = 0.5
    scored: bool = False

    def __post_init__(self) -> None:
        if self.backward:
            raise ValueError(f"{self.name}: FastV is for inference; it is measured forward alone")

    @property
    def rows(self) -> int:
        return self.before + self.vision + self.behind

    @property
    def rows_left(self) -> int:
        return self.before + int(self.vision * self.keep_ratio) + self.behind

    @property
    def key_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def sizes(self) -> str:
        return (
            f"{self.batch} prompts of {self.rows} tokens, {self.rows_left} behind {self.layer} of {self.layers} layers "
            f"of {self.width}"
        )

    def small(self) -> PromptCase:
        return replace(
            self, batch=2, width=64, inner=96, layers=4, heads=4, kv_heads=2, vision=12, before=3, behind=5, scored=True
        )

    def quick(self) -> PromptCase:
        return replace(self, width=128, inner=256, layers=4, heads=4, vision=64)


SHAPES = {
    "qwen2-0.5b": PromptCase(name="qwen2-0.5b"),
    "anyres": PromptCase(name="anyres", vision=2880),
    "tiny": PromptCase(name="tiny", width=64, inner=96, layers=4, heads=4, vision=40, before=3, behind=5),
}


@dataclass(frozen=True)
class Inputs:
    """Three decoders of the same parameters: which attention runs is settled when one is made, and one is pruned."""

    sdpa: Any
    eager: Any
    pruned: Any
    embeddings: Tensor  # (B, N, D)
    vision: Tensor  # (B, N) bool


def make_inputs(case: PromptCase) -> Inputs:
    """Random weights and prompts, the same ones each time."""
    from vr_kernels import apply_pruning

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sdpa, eager, pruned = (decoder(case, attention) for attention in ("sdpa", "eager", "sdpa"))
        sharpen(sdpa)
        for parameter in sdpa.parameters():  # and not RoPE's frequencies, which stay float32 in a loaded model too
            parameter.data = parameter.data.to(case.torch_dtype)
        sdpa.to(case.device)
        for other in (eager, pruned):
            other.to(case.device)
            other.load_state_dict(sdpa.state_dict(), assign=True)
        embeddings = torch.randn(case.batch, case.rows, case.width)
    vision = torch.zeros(case.batch, case.rows, dtype=torch.bool, device=case.device)
    vision[:, case.before : case.before + case.vision] = True
    apply_pruning(pruned, "fastv", layer=case.layer, keep_ratio=case.keep_ratio)
    return Inputs(sdpa, eager, pruned, embeddings.to(case.device, case.torch_dtype), vision)


def decoder(case: PromptCase, attention: str) -> Any:
    """A frozen Qwen2 without a vocabulary to speak of: it gets embeddings, and hands on hidden states."""
    from transformers import Qwen2Config, Qwen2Model

    settings: Any = {
        "vocab_size": 8, "hidden_size": case.width, "intermediate_size": case.inner,
        "num_hidden_layers": case.layers, "num_attention_heads": case.heads, "num_key_value_heads": case.kv_heads,
        "max_position_embeddings": 32768, "attn_implementation": attention,
    }  # fmt: skip
    model: Any = Qwen2Model(Qwen2Config(**settings))
    return model.eval().requires_grad_(False)


def sharpen(model: Any) -> None:
    """Attention as uneven as a trained decoder's: with the initial weights all tokens would score nearly the same."""
    for layer in model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data.normal_(std=1.5 * projection.in_features**-0.5)
