"""Calls of the operators on a stream's token rows, drawn from a seed, and what they compute: loops over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, randn


def stream_call(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, batch: int = 3, length: int = 11, width: int = 7
) -> tuple[torch.Generator, Call]:
    """hidden_states of a large and uneven scale, as a language model's are."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.rand(batch, length, 1, generator=g) * 8
    return g, {"hidden_states": (torch.randn(batch, length, width, generator=g) * scale).to(dtype)}


def draw_text_mask(g: torch.Generator, batch: int, length: int) -> Tensor:
    """Some rows of each sample, none of the second."""
    mask = torch.rand(batch, length, generator=g) < 0.5
    mask[:, 0] = True
    mask[1:2] = False
    return mask


def draw_token_rows(g: torch.Generator, images: int, tokens: int, rows: int) -> Tensor:
    """(I, N) rows, each once; every image but the first has padding, the last is padding alone."""
    token_rows = torch.randperm(max(rows, images * tokens), generator=g)[: images * tokens].view(images, tokens)
    token_rows = token_rows.where(token_rows < rows, -1)
    token_rows[1:, tokens // 2 : tokens // 2 + 1] = -1
    token_rows[1:][-1:] = -1
    return token_rows


def text_guide_call(seed: int = 0, *, ties: bool = False, **sizes: Any) -> Call:
    """Arguments of ``text_guide_token``; with ``ties`` few numbers, -inf among them."""
    g, call = stream_call(seed, **sizes)
    stream = call["hidden_states"]
    if ties:
        stream.round_().clamp_(-2, 2)
        stream[stream == -2] = -torch.inf
    return call | {"text_mask": draw_text_mask(g, *stream.shape[:2])}


def gather_call(
    seed: int = 0,
    *,
    images: int | None = None,
    tokens: int = 4,
    norm: bool = False,
    auxiliary: torch.dtype | None = None,
    guide: bool = False,
    **sizes: Any,
) -> Call:
    """Arguments of ``gather_tokens``; with ``images`` an image_sample, else an image a sample."""
    g, call = stream_call(seed, **sizes)
    batch, length, width = call["hidden_states"].shape
    count = batch if images is None else images
    call["token_rows"] = draw_token_rows(g, count, tokens, batch * length)
    if norm:
        dtype = auxiliary or call["hidden_states"].dtype
        call |= {"norm_weight": 1 + randn(g, width, dtype=dtype, scale=0.5), "norm_eps": 1e-5}
    if guide:
        call["text_mask"] = draw_text_mask(g, batch, length)
    if images is not None:
        call["image_sample"] = torch.randint(batch, (images,), generator=g)
    return call


def scatter_call(seed: int = 0, *, images: int | None = None, tokens: int = 4, **sizes: Any) -> Call:
    """Arguments of ``scatter_add_tokens``."""
    g, call = stream_call(seed, **sizes)
    batch, length, width = call["hidden_states"].shape
    token_rows = draw_token_rows(g, batch if images is None else images, tokens, batch * length)
    update = randn(g, *token_rows.shape, width, dtype=call["hidden_states"].dtype)
    return call | {"token_rows": token_rows, "update": update}


def text_guide_token(hidden_states: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
    """``vr_kernels.text_guide_token``, channel by channel."""
    guides = []
    for sample, mask in zip(hidden_states, text_mask, strict=True):
        text = [row for row, present in zip(sample, mask.tolist(), strict=True) if present]
        guide = text[0] if text else sample.new_zeros(sample.shape[-1])
        for row in text[1:]:
            wins = (row > guide) | (row.isnan() & ~guide.isnan())
            guide = torch.stack([row[c] if wins[c] else guide[c] for c in range(len(row))])
        guides.append(guide)
    return torch.stack(guides), text_mask.any(1)


def gather_tokens(
    hidden_states: Tensor,
    token_rows: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    text_mask: Tensor | None = None,
    image_sample: Tensor | None = None,
) -> Tensor:
    """``vr_kernels.gather_tokens``, row by row."""
    _, length, width = hidden_states.shape
    guide = None if text_mask is None else text_guide_token(hidden_states, text_mask)[0]

    def normalised(row: Tensor) -> Tensor:
        return row if norm_weight is None else row / (row.square().mean() + norm_eps).sqrt() * norm_weight

    images = []
    for i, numbers in enumerate(token_rows.tolist()):
        rows = [
            normalised(hidden_states[n // length, n % length]) if n >= 0 else hidden_states.new_zeros(width)
            for n in numbers
        ]
        if guide is not None:
            rows.append(normalised(guide[i if image_sample is None else int(image_sample[i])]))
        images.append(torch.stack(rows))
    return torch.stack(images)


def scatter_add_tokens(hidden_states: Tensor, token_rows: Tensor, update: Tensor) -> Tensor:
    """``vr_kernels.scatter_add_tokens``, row by row."""
    rows = list(hidden_states.flatten(0, 1))
    for numbers, changes in zip(token_rows.tolist(), update, strict=True):
        for n, change in zip(numbers, changes, strict=True):
            if n >= 0:
                rows[n] = rows[n] + change
    return torch.stack(rows).view(hidden_states.shape)
