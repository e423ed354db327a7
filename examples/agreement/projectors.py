"""`mlp`, `ldpv2` and `stf` beside LLaVA, MobileVLM and LLaVA-STF."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from examples.agreement.compare import Row, compare, copy_weights, layers, leaf, name_of, randomise, relative_error
from examples.agreement.sources import load
from vr_kernels.compression import build_projector
from vr_kernels.nn import TokenConcat

LLAVA = "llava/model/multimodal_projector/builder.py"


def mlp(dtype: torch.dtype) -> Iterator[Row]:
    for height, width, channels, hidden, images in ((24, 24, 32, 48, 2), (5, 7, 17, 31, 3)):
        config = SimpleNamespace(mm_projector_type="mlp2x_gelu", mm_hidden_size=channels, hidden_size=hidden)
        theirs = load("LLaVA", LLAVA).build_vision_projector(config).to(dtype)
        ours: Any = build_projector("mlp", feature_dims=channels, hidden_size=hidden, dtype=dtype)
        randomise(theirs, 0)
        copy_weights(pairs := layers((theirs[0], ours.linear_1), (theirs[2], ours.linear_2)))
        x = leaf(images, height, width, channels, dtype=dtype, seed=1)
        case = f"{height}x{width}, {channels} to {hidden}, {images} images"
        yield compare("mlp", case, theirs(x.flatten(1, 2)), ours([x]).tokens, pairs, [x])


def ldpv2(dtype: torch.dtype) -> Iterator[Row]:
    module = load("MobileVLM", "mobilevlm/model/vision_projector.py", absent=("timm", "torchvision"))
    for grid, channels, hidden, images in ((24, 32, 48, 2), (36, 17, 31, 3), (23, 16, 24, 1)):
        theirs = module.LDPNetV2Projector(SimpleNamespace(mm_hidden_size=channels, hidden_size=hidden)).to(dtype)
        window = -(-grid // 12)  # theirs makes 12 x 12 tokens
        ours: Any = build_projector(
            "ldpv2", feature_dims=channels, hidden_size=hidden, window=(window, window), dtype=dtype
        )
        randomise(theirs, 1)
        first, second = theirs.mlp.mlp[0], theirs.mlp.mlp[2]
        copy_weights(
            pairs := layers((first, ours.linear_1), (second, ours.linear_2), (theirs.peg.peg[0], ours.position))
        )
        x = leaf(images, grid, grid, channels, dtype=dtype, seed=2)
        case = f"{grid}x{grid}, {channels} to {hidden}, {images} images"
        yield compare("ldpv2", case, theirs(x.flatten(1, 2)), ours([x]).tokens, pairs, [x])


def stf(dtype: torch.dtype) -> Iterator[Row]:
    builder = load("LLaVA_STF", LLAVA)
    arch = load("LLaVA_STF", "llava/model/llava_arch.py", absent=("llava",)).LlavaMetaForCausalLM
    for grid, channels, hidden, images in ((24, 16, 48, 1), (6, 17, 31, 3)):
        config = SimpleNamespace(mm_projector_type="mlp2x_gelu", mm_hidden_size=channels, hidden_size=hidden)
        across = builder.build_vision_projector_crosslayer(config).to(dtype)
        projector = builder.build_vision_projector(config).to(dtype)
        ours: Any = build_projector(
            "stf", feature_dims=(channels,) * 8, hidden_size=hidden, window=(2, 2), variant="code", dtype=dtype
        )
        randomise(across, 13)
        randomise(projector, 14)
        ours.mbtf.load_layers_({f"a.{name}": value for name, value in across.state_dict().items()}, "a.")
        ours.stf.load_layers_({f"p.{name}": value for name, value in projector.state_dict().items()}, "p.")
        pairs = layers(
            (across[0], ours.mbtf.conv1), (across[2], ours.mbtf.conv2),
            (projector[0], ours.stf.conv1), (projector[2], ours.stf.conv2),
        )  # fmt: skip
        levels = [leaf(images, grid, grid, channels, dtype=dtype, seed=15 + level) for level in range(8)]
        fused = across(torch.cat([level.flatten(1, 2) for level in levels], -1))
        out = projector(arch.split_image_features(None, fused, 2))
        case = f"{grid}x{grid}, {channels} to {hidden}, {images} images"
        yield compare("stf", case, out, ours(levels).tokens, pairs, levels)
        for window in (2, 3):
            x = levels[0].detach()
            error = relative_error(TokenConcat(window)(x), arch.split_image_features(None, x.flatten(1, 2), window))
            yield Row("stf", f"{grid}x{grid}, k = {window}", name_of(dtype), error, variant="nn.TokenConcat")
