"""`pixel_shuffle` beside InternVL, and beside transformers' InternVL and Idefics3."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from examples.agreement.compare import (
    Row,
    by_name,
    compare,
    copy_weights,
    layers,
    leaf,
    name_of,
    normal,
    randomise,
    relative_error,
)
from examples.agreement.sources import load
from vr_kernels.compression import build_projector
from vr_kernels.compression.projectors._windows import window_rows

PATH = "internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py"


def chat_model(grid: int, channels: int, hidden: int, s: int) -> Any:
    """Theirs, whose encoder and language model do nothing."""
    from transformers import PreTrainedConfig

    config = PreTrainedConfig()
    vars(config).update(
        vision_config=SimpleNamespace(hidden_size=channels, image_size=grid, patch_size=1),
        llm_config=SimpleNamespace(hidden_size=hidden, architectures=[""]),
        downsample_ratio=1 / s, ps_version="v2", force_image_size=None, select_layer=-1, template="",
        system_message="", use_backbone_lora=0, use_llm_lora=0,
    )  # fmt: skip
    module = load("InternVL", PATH, absent=("internvl", "peft"))
    return module.InternVLChatModel(config, nn.Identity(), nn.Identity(), use_flash_attn=False)


def shuffled(x: Tensor, s: int) -> Tensor:
    """Ours by itself: (B, H, W, C) to (B, H/s, W/s, s²C)."""
    return window_rows(x, (x.shape[1] // s, x.shape[2] // s)).flatten(3)


def pixel_shuffle(dtype: torch.dtype) -> Iterator[Row]:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

    for grid, channels, hidden, images, s in (
        (24, 16, 48, 2, 2),
        (6, 17, 31, 3, 2),
        (16, 8, 12, 1, 4),
        (6, 5, 8, 2, 3),
    ):
        authors = chat_model(grid, channels, hidden, s)
        theirs = authors.mlp1.to(dtype)
        ours: Any = build_projector(
            "pixel_shuffle", feature_dims=channels, hidden_size=hidden, window=(s, s), dtype=dtype
        )
        randomise(theirs, 3)
        pairs = layers((theirs[0], ours.layer_norm), (theirs[1], ours.linear_1), (theirs[3], ours.linear_2))
        copy_weights(pairs)
        x = leaf(images, grid, grid, channels, dtype=dtype, seed=4)
        tokens = ours([x]).tokens
        case = f"{grid}x{grid}, s = {s}, {channels} to {hidden}, {images} images"
        out = theirs(authors.pixel_shuffle(x, scale_factor=1 / s).flatten(1, 2))
        yield compare("pixel_shuffle", case, out, tokens, pairs, [x])
        if s != 3:  # transformers refuses it
            config = SimpleNamespace(
                vision_config=SimpleNamespace(hidden_size=channels), text_config=SimpleNamespace(hidden_size=hidden),
                downsample_ratio=1 / s, projector_hidden_act="gelu",
            )  # fmt: skip
            ported = InternVLMultiModalProjector(config).to(dtype)
            ported.load_state_dict(ours.state_dict())
            out = ported(InternVLModel.pixel_shuffle(None, x, scale_factor=1 / s).flatten(1, 2))
            variant = "transformers' InternVL"
            yield compare("pixel_shuffle", case, out, tokens, by_name(ported, ours), [x], variant=variant)
        error = relative_error(shuffled(x, s).flatten(1, 2), Idefics3Connector.pixel_shuffle(None, x.flatten(1, 2), s))
        yield Row("pixel_shuffle", case, name_of(dtype), error, variant="transformers' Idefics3, the shuffle")
    for height, width in ((4, 6), (6, 4), (10, 2)):
        x = normal(2, height, width, 5, dtype=dtype, seed=5)
        both = authors.pixel_shuffle(x), InternVLModel.pixel_shuffle(None, x)
        error = max(relative_error(shuffled(x, 2), theirs) for theirs in both)
        yield Row("pixel_shuffle", f"{height}x{width}", name_of(dtype), error, variant="both InternVLs, not square")
