"""The whole block in plain PyTorch, a token at a time: what the modules are held to. It reads no ``VisionTokenMap``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from python_tests.nn._vision_batch import GRID, Batch, Token
from vr_kernels import VisionRememberConfig

State = Mapping[str, Tensor]


def vision_remember(state: State, config: VisionRememberConfig, batch: Batch, *, text: bool = True) -> Tensor:
    hidden_states = batch.hidden_states
    for layer in config.layers:
        prefix = layer + "."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if layer == "cross_attention":
            hidden_states = cross_attention(own, config, batch, hidden_states)
        else:
            hidden_states = bidirectional(own, config, batch, hidden_states, text)
    return hidden_states


def linear(state: State, name: str, x: Tensor) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def norm(state: State, name: str, kind: str, eps: float, x: Tensor) -> Tensor:
    if kind == "none":
        return x
    if kind == "rms":
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}weight"]
    return layer_norm(x, eps) * state[f"{name}weight"] + state[f"{name}bias"]


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def positions_read(config: VisionRememberConfig, batch: Batch, token: Token) -> list[tuple[int, int]]:
    """The features that a token reads in its tile, row-major."""
    height, width = batch.saliency.shape[1:]
    if config.interaction == "global":
        return [(y, x) for y in range(height) for x in range(width)]
    spans = [
        range(i * size // n, -((i + 1) * size // -n))
        for i, n, size in ((token.row, GRID[0], height), (token.column, GRID[1], width))
    ]
    return [(y, x) for y in spans[0] for x in spans[1]]


def cross_attention(state: State, config: VisionRememberConfig, batch: Batch, hidden_states: Tensor) -> Tensor:
    out = hidden_states.clone()
    for token in batch.tokens:
        where = positions_read(config, batch, token)
        levels = [torch.stack([level[token.tile, y, x] for y, x in where]) for level in batch.levels]  # (K, D_l)
        if config.feature_norm == "level":
            levels = [layer_norm(level, 1e-6) for level in levels]
        features = torch.cat(levels, -1)  # (K, C)
        if config.feature_norm == "all":
            features = layer_norm(features, 1e-6)
        if config.feature_norm != "none":
            features = features * state["attention.norm_weight"] + state["attention.norm_bias"]

        x = norm(state, "query_norm.", config.query_norm, config.norm_eps, hidden_states[token.sample, token.slot])
        if config.expansion == "linear":
            query = linear(state, "expansion", x)
        else:
            query = linear(state, "expansion.2", torch.nn.functional.gelu(linear(state, "expansion.0", x)))
        sigma = torch.stack([batch.saliency[token.tile, y, x] for y, x in where])[:, None]  # (K, 1)
        sigma_value = sigma if config.saliency == "value" else torch.ones_like(sigma)
        sigma_feature = sigma if config.saliency == "feature" else torch.ones_like(sigma)
        if config.literal:
            key, value = features, features * sigma_feature * sigma_value
        else:
            query = linear(state, "attention.query_proj", query)
            key = features @ state["attention.key_weight"].T
            value = (features * sigma_feature) @ state["attention.value_weight"].T
            if config.bias:
                key, value = key + state["attention.key_bias"], value + state["attention.value_bias"]
            value = value * sigma_value
        bias = state.get("window_position")
        update = attend(query, key, value, 1 if config.literal else config.heads[0], bias)
        if not config.literal:
            update = linear(state, "attention.out_proj", update)
        update = linear(state, "contraction", update)
        out[token.sample, token.slot] += update * state["gate"].tanh() if "gate" in state else update
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """One query (E,), its keys and values (K, E)."""
    q, k, v = query.view(heads, -1), key.unflatten(1, (heads, -1)), value.unflatten(1, (heads, -1))
    scores = (q * k).sum(-1).T / q.shape[-1] ** 0.5  # (h, K)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights.T[..., None] * v).sum(0).flatten()


def bidirectional(
    state: State, config: VisionRememberConfig, batch: Batch, hidden_states: Tensor, text: bool
) -> Tensor:
    out = hidden_states.clone()
    assert config.num_attention_heads is not None
    for image in {token.image for token in batch.tokens}:
        places = [(token.sample, token.slot) for token in batch.tokens if token.image == image]
        positions = [int(batch.position_ids[place]) for place in places]
        rows = torch.stack([hidden_states[place] for place in places])
        newlines = [(b, t) for b, t, of_image in batch.newlines if of_image == image and config.newline_keys]
        positions += [int(batch.position_ids[place]) for place in newlines]
        rows = torch.cat([rows, *(hidden_states[place][None] for place in newlines)])
        read = batch.text_mask[places[0][0]]
        if text and config.text_guide != "none" and read.any():
            prompt = hidden_states[places[0][0]][read]
            guide = prompt.amax(0) if config.text_guide == "max" else prompt.mean(0)
            rows, positions = torch.cat([rows, guide[None]]), [*positions, 0]
        rows = norm(state, "norm_", config.bidirectional_norm, config.norm_eps, rows)
        query, key, value = linear(state, "qkv_proj", rows).chunk(3, -1)
        if config.bidirectional_rope_theta is not None:
            turned = torch.tensor(positions), config.num_attention_heads, config.bidirectional_rope_theta
            query, key = turn(query, *turned), turn(key, *turned)
        for i, place in enumerate(places):
            update = attend(query[i], key, value, config.num_attention_heads)
            out[place] = out[place] + linear(state, "out_proj", update)
    return out


def turn(x: Tensor, position: Tensor, heads: int, theta: float) -> Tensor:
    """x (N, E): channels i and i + d/2 of a head are one complex number, turned by position / theta^(2i/d)."""
    real, imaginary = x.unflatten(1, (heads, -1)).chunk(2, -1)  # (N, h, d/2)
    half = real.shape[-1]
    angle = position[:, None] / theta ** (torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([turned.real, turned.imag], -1).flatten(1)
