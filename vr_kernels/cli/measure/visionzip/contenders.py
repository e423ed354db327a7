"""Who is compared: ours, VisionZip as its public code computes it, and the tower that hands on every token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels import VisionZip
from vr_kernels.cli.measure.bench import Contender
from vr_kernels.cli.measure.visionzip.cases import Inputs, TowerCase

# (tokens (B, K, D), scores (B, P)), the scores None where there are none.
Form = Callable[[TowerCase, Inputs], tuple[Tensor, Tensor | None]]


def results(form: Form, case: TowerCase, x: Inputs) -> tuple[Tensor, ...]:
    """The CLS row, which every contender hands on, and on the shape that is looked at closely the scores.

    Which patches are chosen is not compared here: of scores that nearly tie, rounding decides.
    """
    with torch.no_grad():
        tokens, scores = form(case, x)
    return (tokens[:, 0], scores) if case.scored and scores is not None else (tokens[:, 0],)


def ours(case: TowerCase, x: Inputs) -> tuple[Tensor, Tensor]:
    zipped = VisionZip(x.sdpa, case.dominant, case.contextual)(x.images)
    return zipped.tokens, zipped.scores


def plain(case: TowerCase, x: Inputs) -> tuple[Tensor, None]:
    return x.sdpa(x.images, output_hidden_states=[-2]).hidden_states[-2], None


def eager(case: TowerCase, x: Inputs) -> tuple[Tensor, Tensor]:
    """The public code: maps and states of all blocks, keys by a hook; scores in the maps' dtype."""
    attention = x.eager.encoder.layers[-2].self_attn
    keys: list[Tensor] = []
    hook = attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    outputs = x.eager(x.images, output_hidden_states=True, output_attentions=True)
    hook.remove()
    maps, hidden = outputs.attentions[-2], outputs.hidden_states[-2]  # (B, h, N, N), (B, N, D)
    metric = keys[0].unflatten(-1, (-1, attention.head_dim)).mean(2)  # (B, N, d)
    scores = maps[:, :, 0, 1:].sum(1)  # (B, P)

    chosen = scores.topk(case.dominant - 1, dim=1).indices + 1
    kept = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device).scatter(1, chosen, True)
    kept[:, 0] = True
    batch, width = hidden.shape[0], hidden.shape[2]
    dominant = hidden[kept].view(batch, case.dominant, width)
    rest = hidden[~kept].view(batch, -1, width)  # (B, R, D)
    unit = F.normalize(metric[~kept].view(batch, rest.shape[1], -1), dim=-1)

    place = torch.arange(rest.shape[1], device=hidden.device)
    step = max(1, rest.shape[1] // case.contextual)
    is_target = (place % step == 0) & (place < step * case.contextual)
    nearest = (unit[:, ~is_target] @ unit[:, is_target].mT).argmax(-1)
    member = F.one_hot(nearest, case.contextual).to(hidden.dtype)  # (B, R - C, C)
    mean = member.mT @ rest[:, ~is_target] / member.sum(1).clamp(min=1)[..., None]
    return torch.cat([dominant, rest[:, is_target] + mean], 1), scores


FORMS: dict[str, tuple[str, Form]] = {
    "ours": ("VisionZip on the SDPA tower", ours),
    "eager": ("VisionZip as its public code: eager attention maps of all blocks", eager),
    "sdpa": ("the SDPA tower alone: every token, nothing chosen", plain),
}


def make_contender(name: str, case: TowerCase) -> Contender[Inputs]:
    what, form = FORMS[name]
    return Contender(name, what, partial(results, form, case))
