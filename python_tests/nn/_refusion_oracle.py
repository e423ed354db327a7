"""DeepStack and the SVA aggregator in plain PyTorch, a token at a time. It reads no ``VisionTokenMap``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.nn._vision_batch import GRID, Batch, Token
from python_tests.nn._vision_remember_oracle import State, linear


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def window(batch: Batch, token: Token, level: Tensor) -> Tensor:
    """(K, C), row-major."""
    spans = [
        range(i * size // n, -((i + 1) * size // -n))
        for i, n, size in ((token.row, GRID[0], level.shape[1]), (token.column, GRID[1], level.shape[2]))
    ]
    return torch.stack([level[token.tile, y, x] for y in spans[0] for x in spans[1]])


def deep_stack(state: State, batch: Batch, level: int) -> Tensor:
    out = batch.hidden_states.clone()
    for token in batch.tokens:
        x = norm(state, "norm", window(batch, token, batch.levels[level]).flatten(), 1e-6)
        update = linear(state, "linear_fc2", F.gelu(linear(state, "linear_fc1", x)))
        out[token.sample, token.slot] = batch.hidden_states[token.sample, token.slot] + update
    return out


def aggregator(state: State, batch: Batch, heads: int, position_on: str) -> Tensor:
    out = batch.hidden_states.clone()
    for token in batch.tokens:
        residual = batch.hidden_states[token.sample, token.slot]
        tile = batch.levels[0][token.tile]
        context = linear(state, "proj_context", tile.mean((0, 1)))
        query = linear(state, "proj_in", torch.cat([residual, context]))
        keys, values = [], []
        for i, level in enumerate(batch.levels):
            features = window(batch, token, level)
            position = state.get(f"positions.{i}", torch.zeros_like(features))
            placed = features + position
            for rows, kind, read in (
                (keys, "key", placed),
                (values, "value", placed if position_on == "feature" else features),
            ):
                name = f"{kind}_projs.{i}"
                rows.append(linear(state, f"{name}.1", norm(state, f"{name}.0", read, 1e-5)))
        q = linear(state, "query_proj.1", norm(state, "query_proj.0", query, 1e-5)).view(heads, -1)
        key, value = (torch.cat(rows).unflatten(-1, (heads, -1)) for rows in (keys, values))  # (L*K, h, d)
        scores = torch.einsum("hd,khd->hk", q, key) / q.shape[1] ** 0.5
        attended = torch.einsum("hk,khd->hd", scores.softmax(-1), value).flatten()
        x = norm(state, "norm", query + linear(state, "out_proj", attended), 1e-5)
        out[token.sample, token.slot] = residual + linear(state, "linear_2", F.gelu(linear(state, "linear_1", x)))
    return out
