"""Who is compared: ours, FastV as its public code computes it, and the decoder that drops nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Contender
from vr_kernels.cli.measure.fastv.cases import Inputs, PromptCase

# (the cache, what came out of the last token (B, D), or None where that is not what FastV gives).
Form = Callable[[PromptCase, Inputs], tuple[Any, Tensor | None]]


def results(form: Form, case: PromptCase, x: Inputs) -> tuple[Tensor, ...]:
    """The last token's keys in the layer that is scored, which all have, and where it is looked at what comes out.

    On a large shape the latter is not compared: of scores that nearly tie, rounding decides.
    """
    with torch.no_grad():
        cache, out = form(case, x)
    keys = cache.layers[case.layer - 1].keys[:, :, -1]  # (B, h_kv, d)
    return (keys, out) if case.scored and out is not None else (keys,)


def ours(case: PromptCase, x: Inputs) -> tuple[Any, Tensor]:
    outputs = x.pruned(inputs_embeds=x.embeddings, vision_mask=x.vision, use_cache=True)
    return outputs.past_key_values, outputs.last_hidden_state[:, -1]


def plain(case: PromptCase, x: Inputs) -> tuple[Any, None]:
    return x.sdpa(inputs_embeds=x.embeddings, use_cache=True).past_key_values, None


def eager(case: PromptCase, x: Inputs) -> tuple[Any, Tensor]:
    """The public code: the layer in front of the drop runs with eager attention, and its map is kept."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=x.sdpa.config)
    hidden, maps = x.embeddings, []
    batch, rows, width = hidden.shape
    positions = torch.arange(rows, device=hidden.device).expand(batch, -1)
    image = x.vision[0].nonzero()[:, 0]  # one image, in the same place of every prompt
    first, last = int(image[0]), int(image[-1])
    scored = x.eager.layers[case.layer - 1]
    hook = scored.self_attn.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    for number, layer in enumerate(x.sdpa.layers):
        mask = None  # the causal one
        if number == case.layer - 1:
            layer = scored
            largest = torch.finfo(hidden.dtype).min
            mask = torch.full((rows, rows), largest, dtype=hidden.dtype, device=hidden.device).triu(1)
            mask = mask[None, None]
        if number == case.layer:
            score = maps.pop().mean(1)[:, -1, first : last + 1]  # of the last row
            chosen = score.topk(int(len(image) * case.keep_ratio), dim=1).indices.sort(1).values + first
            positions = torch.cat([positions[:, :first], chosen, positions[:, last + 1 :]], 1)
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, width))
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=x.sdpa.rotary_emb(hidden, positions),
            past_key_values=cache,
            use_cache=True,
        )
    hook.remove()
    return cache, x.sdpa.norm(hidden)[:, -1]


FORMS: dict[str, tuple[str, Form]] = {
    "ours": ("FastV on the SDPA decoder", ours),
    "eager": ("FastV as its public code: one layer with eager attention, whose map is kept", eager),
    "sdpa": ("the SDPA decoder alone: no token dropped", plain),
}


def make_contender(name: str, case: PromptCase) -> Contender[Inputs]:
    what, form = FORMS[name]
    return Contender(name, what, partial(results, form, case))
