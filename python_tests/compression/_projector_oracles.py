"""Each projector as its authors write it: stock PyTorch, channels first where they are, a token at a time elsewhere.

``oracle(weights, levels, grid) -> tokens (tiles, n, D)``; they share nothing with the package but parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Oracle = Callable[[Weights, list[Tensor], tuple[int, int]], Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def mlp(w: Weights, x: Tensor, first: str = "linear_1", second: str = "linear_2") -> Tensor:
    return linear(w, second, F.gelu(linear(w, first, x)))


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def pooled(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)


def unfolded(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(tiles, H, W, C) -> (tiles, n, C, s_h*s_w)"""
    window = (x.shape[1] // grid[0], x.shape[2] // grid[1])
    columns = F.unfold(x.permute(0, 3, 1, 2), window, stride=window)  # (tiles, C*s_h*s_w, n)
    return columns.transpose(1, 2).unflatten(2, (x.shape[3], -1))


def span(i: int, n: int, size: int) -> range:
    return range(math.floor(i * size / n), math.ceil((i + 1) * size / n))


def plain(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    return mlp(w, levels[0]).flatten(1, 2)


def pool(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    return mlp(w, pooled(levels[0], grid)).flatten(1, 2)


def concat(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    return mlp(w, unfolded(levels[0], grid).flatten(2))


def pixel_shuffle(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    x = unfolded(levels[0], grid).transpose(2, 3).flatten(2)  # (dy, dx, c)
    return mlp(w, norm(w, "layer_norm", x, 1e-5))


def ldpv2(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    x = pooled(mlp(w, levels[0]), grid).permute(0, 3, 1, 2)
    x = F.conv2d(x, w["position.weight"], w["position.bias"], padding=1, groups=x.shape[1]) + x
    return x.flatten(2).transpose(1, 2)


def perceiver(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    (tiles, height, width), heads = levels[0].shape[:3], 2
    x = levels[0].reshape(tiles, height * width, -1)
    value = norm(w, "ln_kv", linear(w, "kv_proj", x), 1e-6)
    channels = value.shape[-1]
    position = torch.zeros(height * width, channels, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for c in range(channels):
                half, rest = divmod(c, channels // 2)
                cosine, i = divmod(rest, channels // 4)
                angle = (row if half else column) / 10000 ** (i / (channels // 4))
                position[row * width + column, c] = math.cos(angle) if cosine else math.sin(angle)
    key = value + position.to(value.dtype)
    query = norm(w, "ln_q", w["query"], 1e-6).expand(tiles, -1, -1)
    biases, weights = w["attn.in_proj_bias"].chunk(3), w["attn.in_proj_weight"].chunk(3)
    q, k, v = (
        F.linear(t, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for t, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return norm(w, "ln_post", linear(w, "attn.out_proj", out), 1e-6) @ w["proj"]


def bilinear(n: int, size: int) -> Tensor:
    """(n, size): half-pixel centres, no antialias."""
    matrix = torch.zeros(n, size, dtype=torch.float64)
    for i in range(n):
        centre = max((i + 0.5) * size / n - 0.5, 0)
        low = min(int(centre), size - 1)
        matrix[i, low] += 1 - (centre - low)
        matrix[i, min(low + 1, size - 1)] += centre - low
    return matrix


def token_packer(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    heads, (height, width) = 2, levels[0].shape[1:3]
    wide = torch.promote_types(levels[0].dtype, torch.float32)
    rows, columns = bilinear(grid[0], height).to(wide), bilinear(grid[1], width).to(wide)
    coarse = torch.einsum("ih,jw,bhwc->bijc", rows, columns, levels[-1].to(wide)).to(levels[0].dtype)
    joint = torch.cat(levels, -1)
    query = linear(w, "query_proj", norm(w, "query_norm", linear(w, "query_in", coarse), 1e-6))
    key = linear(w, "key_proj", norm(w, "key_norm", mlp(w, joint, "key_in.0", "key_in.1"), 1e-6))
    value = linear(w, "value_proj", norm(w, "value_norm", mlp(w, joint, "value_in.0", "value_in.1"), 1e-6))
    tokens = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            cells = [(y, x) for y in span(i, grid[0], height) for x in span(j, grid[1], width)]
            q = query[:, i, j, None].unflatten(-1, (heads, -1)).transpose(1, 2)  # (tiles, h, 1, d)
            k, v = (
                torch.stack([t[:, y, x] for y, x in cells], 1).unflatten(-1, (heads, -1)).transpose(1, 2)
                for t in (key, value)
            )
            tokens.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])
    out = linear(w, "out_proj", torch.stack(tokens, 1))
    return mlp(w, out, "mlp.0", "mlp.2")


def deformable(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    heads, points = 2, 4
    query = pooled(levels[-1], grid)  # (tiles, n_h, n_w, C)
    wide = torch.promote_types(query.dtype, torch.float32)
    shape = (heads, len(levels), points)
    offsets = linear(w, "attention.sampling_offsets", query).to(wide).unflatten(-1, (*shape, 2))
    weights = linear(w, "attention.attention_weights", query).to(wide).unflatten(-1, (heads, -1))
    weights = weights.softmax(-1).unflatten(-1, shape[1:])  # (tiles, n_h, n_w, h, L, P)
    centre = torch.tensor(
        [[((j + 0.5) / grid[1], (i + 0.5) / grid[0]) for j in range(grid[1])] for i in range(grid[0])], dtype=wide
    )
    parts = []
    for h in range(heads):
        total = 0
        for i, level in enumerate(levels):
            value = linear(w, f"attention.value_projs.{i}", level).unflatten(-1, (heads, -1))[..., h, :]
            size = torch.tensor([level.shape[2], level.shape[1]], dtype=wide)
            for p in range(points):
                place = 2 * (centre + offsets[:, :, :, h, i, p] / size) - 1
                sampled = F.grid_sample(value.permute(0, 3, 1, 2).to(wide), place, align_corners=False)
                total = total + sampled.permute(0, 2, 3, 1) * weights[:, :, :, h, i, p, None]
        parts.append(total)
    update = linear(w, "attention.out_proj", torch.cat(parts, -1).to(query.dtype))
    return mlp(w, query + update).flatten(1, 2)


def stf(w: Weights, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    k, tokens = levels[0].shape[1] // grid[0], 2

    def conv(name: str, x: Tensor, size: int) -> Tensor:
        weight = w[f"{name}.weight"].view(-1, x.shape[1], size, size)
        return F.gelu(F.conv2d(x, weight, w[f"{name}.bias"], stride=size))

    x = conv("mbtf.conv2", conv("mbtf.conv1", torch.cat(levels, -1).permute(0, 3, 1, 2), 1), 1)
    parts = conv("stf.conv1", x, k).chunk(tokens, 1)
    out = [conv("stf.conv3", conv("stf.conv2", part, 1), 1).flatten(2).transpose(1, 2) for part in parts]
    return torch.stack(out, 2).flatten(1, 2)


ORACLES: dict[str, Oracle] = {
    "mlp": plain,
    "pool": pool,
    "concat": concat,
    "pixel_shuffle": pixel_shuffle,
    "perceiver": perceiver,
    "ldpv2": ldpv2,
    "token_packer": token_packer,
    "deformable": deformable,
    "stf": stf,
}
