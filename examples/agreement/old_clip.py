"""VisionZip and VisPruner on CLIP towers as their authors run them, in the process of the old transformers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from examples.agreement.compare import normal
from examples.agreement.sources import load

BLOCKS = 24  # VisionZip's code counts on CLIP-L's
# Pixels, of a patch, width, heads, images, and VisionZip's dominant (with the CLS token) and contextual tokens.
TOWERS = (
    (48, 8, 32, 4, 3, 10, 4), (56, 8, 24, 3, 2, 12, 5), (336, 14, 32, 4, 1, 54, 10), (336, 14, 32, 4, 2, 192, 30),
    (24, 8, 16, 2, 2, 3, 2), (48, 8, 32, 2, 2, 30, 6), (88, 8, 48, 6, 1, 31, 7),
)  # fmt: skip

Case = dict[str, Any]


def towers(dtype: torch.dtype) -> Iterator[tuple[Any, Case]]:
    """Each tower, and what it takes to build it again."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    for seed, (pixels, patch, width, heads, images, dominant, contextual) in enumerate(TOWERS):
        config = {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": BLOCKS,
            "num_attention_heads": heads, "image_size": pixels, "patch_size": patch,
        }  # fmt: skip
        torch.manual_seed(seed)
        tower = CLIPVisionModel(CLIPVisionConfig(**config)).to(dtype).eval()
        for parameter in tower.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # attention as it starts is flat
        weights = {name.removeprefix("vision_model."): value.clone() for name, value in tower.state_dict().items()}
        inputs = normal(images, 3, pixels, pixels, dtype=dtype, seed=seed)
        yield tower, {
            "config": config, "weights": weights, "inputs": inputs, "dominant": dominant, "contextual": contextual,
        }  # fmt: skip


@torch.no_grad()
def visionzip(dtype: torch.dtype) -> Iterator[Case]:
    import transformers.models.clip.modeling_clip as clip

    utils = load("VisionZip", "visionzip/utils.py")
    encoder = load("VisionZip", "visionzip/clip_encoder.py")
    clip.CLIPEncoderLayer.forward = utils.CLIP_EncoderLayer_forward
    clip.CLIPAttention.forward = utils.CLIPAttention_forward
    for tower, case in towers(dtype):
        utils.apply_info(tower, dominant_num=case["dominant"] - 1, contextual_num=case["contextual"])
        model = SimpleNamespace(vision_tower=tower, device=torch.device("cpu"), dtype=dtype)
        tokens, index = encoder.CLIPVisionTower_VisionZip.forward(model, case["inputs"])
        yield case | {"tokens": tokens, "kept": index[:, 1:].sort(1).values - 1}


@torch.no_grad()
def vispruner(dtype: torch.dtype) -> Iterator[Case]:
    encoder = load("VisPruner", "llava/model/multimodal_encoder/clip_encoder.py").CLIPVisionTower
    for tower, case in towers(dtype):
        model = encoder.__new__(encoder)
        torch.nn.Module.__init__(model)
        model.vision_tower, model.select_layer, model.select_feature, model.is_loaded = tower, -2, "patch", True
        patches = (case["config"]["image_size"] // case["config"]["patch_size"]) ** 2
        case["runs"] = []
        for count, ratio in (
            (patches // 4, 0.5), (patches // 2 + 1, 0.25), (patches // 8 + 3, 0.75), (patches // 3, 0.0),
            (patches // 3, 1.0), (patches, 0.5),
        ):  # fmt: skip
            important = int(count * ratio)
            if can_match(patches - important, count - important):
                features, kept = pruned(model, case["inputs"], count, ratio)
                tokens = torch.stack([image[chosen] for image, chosen in zip(features, kept, strict=True)])
                case["runs"].append({"count": count, "ratio": ratio, "tokens": tokens, "kept": kept})
        yield case


def can_match(candidates: int, kept: int) -> bool:
    """It fails at odd numbers, and where a round is to drop more than there are pairs."""
    while candidates > kept > 0:
        dropped = min(8, candidates - kept)
        if candidates % 2 or candidates // 2 < dropped:
            return False
        candidates -= dropped
    return True


def pruned(tower: Any, images: Tensor | None, count: int, ratio: float) -> tuple[Tensor, list[Tensor]]:
    """Their features, and of each image which patches are kept, in raster order."""
    arch = load("VisPruner", "llava/model/llava_arch.py", absent=("llava",)).LlavaMetaForCausalLM
    model = SimpleNamespace(
        get_model=lambda: SimpleNamespace(get_vision_tower=lambda: tower, mm_projector=lambda features: features),
        get_visual_token_num=lambda: count,
        get_important_ratio=lambda: ratio,
    )
    features, mask = arch.encode_images(model, images)
    return features, [of_image.nonzero()[:, 0] for of_image in mask]
