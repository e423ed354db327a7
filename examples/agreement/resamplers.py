"""`perceiver` and `token_packer` beside MiniCPM-V's, OmniLMM's and TokenPacker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, List  # noqa: UP035
from unittest.mock import patch

import torch
from torch import Tensor

from examples.agreement.compare import Row, by_name, compare, copy_weights, layers, leaf, randomise
from examples.agreement.sources import load
from vr_kernels.compression import build_projector


def perceiver(dtype: torch.dtype) -> Iterator[Row]:
    # The file took List from torch, which no longer hands it on.
    newer = load("MiniCPM_V_2_6", "resampler.py", List=List)  # noqa: UP006
    older = load("OmniLMM", "omnilmm/model/resampler.py", absent=("requests", "torchvision"))
    cases = (
        ((8, 8), (24, 24), 48, 256, 2, ""), ((2, 3), (7, 5), 32, 32, 3, ""), ((3, 3), (5, 11), 17, 128, 1, ""),
        ((4, 4), (6, 6), 24, 32, 2, "OmniLMM, positions on the queries too"),
    )  # fmt: skip
    for queries, grid, channels, hidden, images, variant in cases:
        heads = max(1, hidden // 128)
        if variant:
            theirs = older.Resampler(grid_size=queries[0], embed_dim=hidden, num_heads=heads, kv_dim=channels)
        else:
            theirs = newer.Resampler(
                num_queries=queries[0] * queries[1], embed_dim=hidden, num_heads=heads, kv_dim=channels
            )
        theirs = theirs.to(dtype)
        randomise(theirs, 6)
        ours: Any = build_projector(
            "perceiver", feature_dims=channels, hidden_size=hidden, query_grid=queries, dtype=dtype
        )
        copy_weights(pairs := by_name(theirs, ours))
        x = leaf(images, *grid, channels, dtype=dtype, seed=7)
        flat = x.flatten(1, 2)
        out = theirs(flat) if variant else theirs(flat, torch.tensor([grid] * images))
        case = f"{grid[0]}x{grid[1]}, {queries[0]}x{queries[1]} queries, {channels} to {hidden}, {images} images"
        yield compare("perceiver", case, out, ours([x]).tokens, pairs, [x], variant=variant)


def token_packer(dtype: torch.dtype) -> Iterator[Row]:
    module = load("TokenPacker", "llava/model/multimodal_projector/builder.py")
    for grid, s, images, hidden in ((4, 2, 2, 48), (6, 3, 1, 40), (8, 4, 3, 24), (9, 3, 2, 7), (16, 2, 1, 32)):
        theirs = module.TokenPacker(raw_grid=grid, hidden_size=hidden, scale_factor=s).to(dtype)
        ours: Any = build_projector(
            "token_packer", feature_dims=(1024,) * 4, hidden_size=hidden, window=(s, s), dtype=dtype
        )
        randomise(theirs, 8)
        attention = theirs.clip_attn
        pairs = layers(
            (theirs.q_proj_1, ours.query_in), (theirs.ln_q_1, ours.query_norm),
            (theirs.k_proj_1[0], ours.key_in[0]), (theirs.k_proj_1[2], ours.key_in[1]), (theirs.ln_k_1, ours.key_norm),
            (theirs.v_proj_1[0], ours.value_in[0]), (theirs.v_proj_1[2], ours.value_in[1]),
            (theirs.ln_v_1, ours.value_norm), (attention.out_proj, ours.out_proj),
            (theirs.mlp[0], ours.mlp[0]), (theirs.mlp[2], ours.mlp[2]),
        )  # fmt: skip
        projections = (ours.query_proj, ours.key_proj, ours.value_proj)
        pairs.append((attention.in_proj_weight, [part.weight for part in projections]))
        pairs.append((attention.in_proj_bias, [part.bias for part in projections]))
        copy_weights(pairs)
        levels = [leaf(images, grid, grid, 1024, dtype=dtype, seed=9 + level) for level in range(4)]
        flat = levels[3].flatten(1, 2), torch.cat([level.flatten(1, 2) for level in levels], -1)
        case = f"{grid}x{grid}, s = {s}, to {hidden}, {images} images"
        tokens = ours(levels).tokens
        yield compare("token_packer", case, theirs(flat), tokens, pairs, levels)
        if dtype == torch.float64:
            with patch.object(Tensor, "float", lambda tensor: tensor):  # it resizes its query in float32
                exact = theirs(flat)
            yield compare("token_packer", case, exact, tokens, pairs, levels, variant="without its cast")
