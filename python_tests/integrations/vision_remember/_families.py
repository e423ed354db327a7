"""Tiny random models of each family, and batches for them without a processor."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from vr_kernels import apply_vision_remember
from vr_kernels.integrations.vision_remember.families import FAMILIES
from vr_kernels.nn import VisionRemember

KINDS = sorted(FAMILIES)
PAD, IMAGE, VIDEO, START, END = range(5)  # text is 8 to 39
VOCABULARY = 40
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None,
    "max_position_embeddings": 512,
}  # fmt: skip
IDS: dict[str, Any] = {"image_token_id": IMAGE, "tie_word_embeddings": False}
QWEN_IDS = IDS | {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
QWEN_VISION: dict[str, Any] = {"depth": 3, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
SIDE = 24  # of a tile; 3x3 patches of 8
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SIZES = [(40, 60), (70, 30), (30, 30)]  # of AnyRes images
GRIDS = [(1, 4, 6), (1, 6, 2), (1, 10, 8)]  # of Qwen-VL's images: the last has several attention windows
LAYERS = (1, 3)


def model(kind: str, **changes: Any) -> Any:
    """Its logits depend visibly on its images."""
    torch.manual_seed(0)
    return randomise(_MODELS[kind](**changes)).eval()


def patched(kind: str, *, random: bool = True, neighborhood: tuple[int, int] = (0, 0), **options: Any) -> Any:
    """A model with blocks that change what they read, unless ``random`` is False."""
    defaults: dict[str, Any] = {"layers": LAYERS, "levels": (1, 2), "num_heads": 4}
    built = apply_vision_remember(model(kind), neighborhood=neighborhood, **(defaults | options))
    return randomise_blocks(built) if random else built


def randomise(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return module


def randomise_blocks(model: Any) -> Any:
    for number, block in enumerate(blocks(model)):
        randomise(block, 7 + number)
    return model


def blocks(model: Any) -> list[VisionRemember]:
    return [module for module in model.modules() if isinstance(module, VisionRemember)]


def images(kind: str, numbers: list[int]) -> dict[str, Any]:
    """Pixels of images by their numbers, of which each has its own content and, where it may, its own size."""
    if kind.startswith("qwen"):
        grids = [GRIDS[number % 3] for number in numbers]
        pixels = [_noise(number, t * h * w, 3 * 2 * 4 * 4) for number, (t, h, w) in zip(numbers, grids, strict=True)]
        return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
    if kind == "internvl":
        return {"pixel_values": torch.cat([_noise(number, 1 + number % 3, 3, 32, 32) for number in numbers])}
    if kind == "llava":
        return {"pixel_values": torch.cat([_noise(number, 1, 3, SIDE, SIDE) for number in numbers])}
    sizes = [SIZES[number % 3] for number in numbers]
    pixels = [_noise(number, 5, 3, SIDE, SIDE) for number in numbers]  # no image has more tiles
    return {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes)}


def batch(model: Any, kind: str, samples: list[list[int]], *, text: int = 3, seeds: list[int] | None = None) -> Any:
    """Left-padded samples: text, an image, text, an image, text."""
    rows = []
    for seed, numbers in zip(seeds or range(len(samples)), samples, strict=True):
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(8, VOCABULARY, (len(numbers) + 1, text), generator=generator)
        row = words[0].tolist()
        for number, following in zip(numbers, words[1:].tolist(), strict=True):
            row += [START, *[IMAGE] * tokens(model, kind, number), END, *following]
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    numbers = [number for sample in samples for number in sample]
    if numbers:
        inputs |= images(kind, numbers)
    if kind.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs


def tokens(model: Any, kind: str, number: int) -> int:
    """How many an image has."""
    inner = next(module for module in model.modules() if "language_model" in module._modules)
    with torch.no_grad():
        encoded = type(inner).get_image_features(inner, **images(kind, [number]), return_dict=True).pooler_output
    return sum(map(len, encoded))


def generate(model: Any, inputs: Any, **options: Any) -> Tensor:
    """(B, new): what a greedy search adds."""
    defaults: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [PAD, IMAGE, VIDEO]}
    return model.generate(**inputs, **(defaults | options))[:, inputs["input_ids"].shape[1] :]  # type: ignore[no-any-return]


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _llava(kind: str, tower: str = "clip", **changes: Any) -> Any:
    config, model = {
        "llava": (hf.LlavaConfig, hf.LlavaForConditionalGeneration),
        "llava_next": (hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration),
        "llava_onevision": (hf.LlavaOnevisionConfig, hf.LlavaOnevisionForConditionalGeneration),
    }[kind]
    vision = (hf.CLIPVisionConfig if tower == "clip" else hf.SiglipVisionConfig)(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=8
    )
    options: dict[str, Any] = {"vision_feature_select_strategy": "default" if tower == "clip" else "full"}
    if kind != "llava":
        options["image_grid_pinpoints"] = PINPOINTS
    if kind == "llava_onevision":
        options["video_token_id"] = VIDEO
    text = hf.Qwen2Config(**TEXT)
    return model(config(vision_config=vision, text_config=text, **(IDS | options | changes)))


def _qwen2(**changes: Any) -> Any:
    vision = QWEN_VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(text_config=TEXT | _rope([1, 1, 2]), vision_config=vision, **(QWEN_IDS | changes))
    )


def _qwen25(**changes: Any) -> Any:
    vision = QWEN_VISION | {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(text_config=TEXT | _rope([1, 1, 2]), vision_config=vision, **(QWEN_IDS | changes))
    )


def _qwen3(**changes: Any) -> Any:
    vision = QWEN_VISION | {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(
            text_config=TEXT | {"head_dim": 8} | _rope([2, 1, 1]), vision_config=vision, **(QWEN_IDS | changes)
        )
    )


def _internvl(**changes: Any) -> Any:
    vision = hf.InternVLVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=[32, 32],
        patch_size=[8, 8],
    )  # fmt: skip
    config = hf.InternVLConfig(vision_config=vision, text_config=hf.Qwen2Config(**TEXT), **(IDS | changes))
    return hf.InternVLForConditionalGeneration(config)


def _rope(section: list[int]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}}


_MODELS: dict[str, Any] = {
    "internvl": _internvl,
    "llava": lambda **changes: _llava("llava", **changes),
    "llava_next": lambda **changes: _llava("llava_next", **changes),
    "llava_onevision": lambda **changes: _llava("llava_onevision", "siglip", **changes),
    "qwen2_5_vl": _qwen25,
    "qwen2_vl": _qwen2,
    "qwen3_vl": _qwen3,
}
