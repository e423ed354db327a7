"""`nn.SpatialVisionAggregator` beside Cambrian-1's sampler, `nn.DeepStack` beside Qwen3-VL's of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from examples.agreement.compare import Row, by_name, compare, copy_weights, layers, leaf, randomise
from examples.agreement.sources import load
from vr_kernels.nn import DeepStack, SpatialVisionAggregator, VisionTokenMap

BEFORE, BEHIND = 3, 2  # text tokens around an image's


def sva(dtype: torch.dtype) -> Iterator[Row]:
    sampler = load("Cambrian", "cambrian/model/vision_sampler.py").VisionTokenSampler
    cambrian = load("Cambrian", "cambrian/model/cambrian_arch.py", absent=("cambrian", "ezcolorlog"))
    arrange = cambrian.CambrianMetaForCausalLM.rearrange_vision_tower_features_inference
    for n, s, encoders, width, hidden, images, newline in (
        (4, 2, 2, 64, 48, 2, 1), (3, 3, 3, 48, 40, 3, 1), (5, 1, 1, 32, 17, 1, 1), (6, 4, 2, 128, 32, 2, 0),
    ):  # fmt: skip
        theirs = sampler(hidden, width, [width] * encoders, [s] * encoders, width, num_of_layers=1).to(dtype)
        randomise(theirs, 3)
        layer = theirs.layers[0]
        ours: Any = SpatialVisionAggregator(
            hidden, (width,) * encoders, window=(s, s), hidden_dim=width, num_heads=16, zero_init=False, dtype=dtype
        )
        modules: list[tuple[nn.Module, nn.Module]] = [
            (layer.proj_context, ours.proj_context), (layer.proj_in, ours.proj_in), (layer.norm, ours.norm),
            (layer.cross_attn.q_proj[0], ours.query_proj[0]), (layer.cross_attn.q_proj[1], ours.query_proj[1]),
            (layer.cross_attn.o_proj, ours.out_proj),
            (layer.proj_out.linear_1, ours.linear_1), (layer.proj_out.linear_2, ours.linear_2),
        ]  # fmt: skip
        for i in range(encoders):
            for name, projection in (("k", ours.key_projs[i]), ("v", ours.value_projs[i])):
                of_theirs = getattr(layer.cross_attn, f"{name}_proj_{i}")
                modules += [(of_theirs[0], projection[0]), (of_theirs[1], projection[1])]
        pairs = layers(*modules)
        if s > 1:
            pairs += [(getattr(layer, f"pos_embed_{i}"), ours.positions[i]) for i in range(encoders)]
        copy_weights(pairs)

        features = [leaf(images, n * s, n * s, width, dtype=dtype, seed=4 + i) for i in range(encoders)]
        row = n + newline
        stream = leaf(images, BEFORE + n * row + BEHIND, hidden, dtype=dtype, seed=8)
        flat = [level.flatten(1, 2) for level in features]
        context = flat[0].mean(1).view(images, 1, 1, -1).expand(-1, n * n, 1, -1).flatten(0, 1)
        windows, masks = arrange(None, flat, n, [(100, 100)] * images)
        tokens = stream[:, BEFORE : BEFORE + n * row].view(images, n, row, -1)
        sampled = theirs(tokens[:, :, :n].reshape(images * n * n, 1, -1), context, *windows, *masks)
        grid = torch.cat([sampled.view(images, n, n, -1), tokens[:, :, n:]], 2).flatten(1, 2)
        expected = torch.cat([stream[:, :BEFORE], grid, stream[:, BEFORE + n * row :]], 1)

        mask = torch.zeros(stream.shape[:2], dtype=torch.bool)
        mask[:, BEFORE : BEFORE + n * row].view(images, n, row)[:, :, :n] = True
        vision = VisionTokenMap.from_grid(mask, grid=(n, n), feature_grid=(n * s, n * s))
        case = f"{n}x{n} tokens, s = {s}, {encoders} encoders, {images} images" + ", newlines" * newline
        found = ours(stream, vision, features)
        yield compare("nn.SpatialVisionAggregator", case, expected, found, pairs, [stream, *features])


def deepstack(dtype: torch.dtype) -> Iterator[Row]:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionPatchMerger

    for height, width, channels, hidden, images in ((4, 4, 16, 32, 1), (6, 10, 17, 31, 3), (24, 16, 32, 48, 2)):
        config = SimpleNamespace(hidden_size=channels, spatial_merge_size=2, out_hidden_size=hidden)
        theirs = Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True).to(dtype)
        randomise(theirs, 4)
        ours = DeepStack(hidden, channels, window=(2, 2), zero_init=False, dtype=dtype)
        copy_weights(pairs := by_name(theirs, ours))
        x = leaf(images, height, width, channels, dtype=dtype, seed=5)
        # Qwen3-VL's processor orders patches by windows.
        windows = x.view(images, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        count = height * width // 4
        stream = leaf(images, BEFORE + count + BEHIND, hidden, dtype=dtype, seed=6)
        mask = torch.zeros(stream.shape[:2], dtype=torch.bool)
        mask[:, BEFORE : BEFORE + count] = True
        merged = theirs(windows.reshape(-1, channels))
        expected = Qwen3VLTextModel._deepstack_process(None, stream.clone(), mask, merged)
        vision = VisionTokenMap.from_grid(mask, grid=(height // 2, width // 2), feature_grid=(height, width))
        case = f"{height}x{width}, {channels} to {hidden}, {images} images"
        yield compare("nn.DeepStack", case, expected, ours(stream, vision, [x]), pairs, [stream, x])
