"""VisionZip and VisPruner here, with the towers and images that their authors' code was run with."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from examples.agreement.compare import DTYPES, Row, name_of, normal, relative_error
from examples.agreement.old_clip import pruned
from examples.agreement.sources import load
from vr_kernels import VisionZip
from vr_kernels.compression.anyres import pack_anyres
from vr_kernels.compression.pruning import vispruner as prune
from vr_kernels.integrations.vispruner import VisPruner


def tower_of(case: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(CLIPVisionConfig(**case["config"], attn_implementation="sdpa")).to(case["inputs"].dtype)
    weights = {name: value for name, value in case["weights"].items() if "position_ids" not in name}
    tower.load_state_dict(weights)
    return tower.eval()


def named(case: dict[str, Any], budget: str) -> str:
    side = case["config"]["image_size"] // case["config"]["patch_size"]
    return f"{side}x{side} patches, {len(case['inputs'])} images, {budget}"


@torch.no_grad()
def visionzip(cases: list[dict[str, Any]]) -> Iterator[Row]:
    for case in cases:
        ours = VisionZip(tower_of(case), case["dominant"], case["contextual"])(case["inputs"])
        same = torch.equal(ours.dominant, case["kept"])
        yield Row(
            "VisionZip",
            named(case, f"{case['dominant']} + {case['contextual']}"),
            name_of(case["inputs"].dtype),
            relative_error(ours.tokens, case["tokens"]) if same else None,
            same=int(same),
        )
    restore = load("VisionZip", "visionzip/llava_arch.py", absent=("llava",)).restore_image_features_sorted
    for height, width, dominant, contextual in ((2, 2, 53, 10), (1, 3, 20, 4), (3, 2, 7, 1)):
        tiles, channels = height * width, 8
        generator = torch.Generator().manual_seed(height * 10 + width)
        kept = torch.stack([torch.randperm(576, generator=generator)[:dominant] for _ in range(1 + tiles)])
        for dtype in DTYPES:
            features = normal(1 + tiles, 1 + dominant + contextual, channels, dtype=dtype, seed=1)
            model = SimpleNamespace(model=SimpleNamespace(image_newline=torch.zeros(channels)))
            index = torch.nn.functional.pad(kept[1:] + 1, (1, 0))  # the CLS token first
            theirs = torch.cat((features[0], restore(model, features[1:], index, width, height)))
            ours = pack_anyres(
                features, kept.sort(1).values, tiles=(height, width), grid=(24, 24), contextual=contextual
            )
            size = f"{height}x{width} tiles, {dominant} + {contextual}"
            yield Row("VisionZip", size, name_of(dtype), relative_error(ours, theirs), variant="order of AnyRes")


@torch.no_grad()
def vispruner(cases: list[dict[str, Any]]) -> Iterator[Row]:
    exact: dict[str, list[Tensor]] = {}
    for case in cases:
        tower, dtype = tower_of(case), case["inputs"].dtype
        for run in case["runs"]:
            ours = VisPruner(tower, run["count"], run["ratio"])(case["inputs"])
            errors = [
                relative_error(mine, theirs)
                for mine, index, theirs, kept in zip(
                    ours.tokens, ours.dominant, run["tokens"], run["kept"], strict=True
                )
                if torch.equal(index, kept)
            ]
            text = named(case, f"{run['count']} tokens, ratio {run['ratio']}")
            before = exact.setdefault(text, run["kept"])  # float64 comes first
            own = sum(torch.equal(*pair) for pair in zip(before, run["kept"], strict=True))
            variant = "towers of 576 patches" if text.startswith("24x24") else "towers of up to 121 patches"
            yield Row(
                "VisPruner", text, name_of(dtype), max(errors, default=None), None, variant, len(errors),
                len(run["kept"]), own,
            )  # fmt: skip
    for width, spread in ((1024, 1.0), (1024, 0.1), (256, 1.0), (32, 1.0), (32, 0.05)):
        for count, ratio in ((64, 0.5), (144, 0.5), (192, 0.25)):
            yield from random_features(width, spread, count, ratio)


def random_features(width: int, spread: float, count: int, ratio: float, images: int = 4) -> Iterator[Row]:
    """Features around one mean, as far from it as ``spread`` says."""
    whole = normal(images, 576, width, dtype=torch.float64, seed=width) * spread
    whole += normal(images, 1, width, dtype=torch.float64, seed=1)
    maps = normal(images, 16, 576, dtype=torch.float64, seed=2).softmax(-1)
    exact: list[Tensor] = []
    for dtype in DTYPES:
        features, attention = whole.to(dtype), maps.to(dtype)
        _, theirs = pruned(lambda _, output_attentions: (features, attention), None, count, ratio)  # noqa: B023
        ours = prune(attention.sum(1), features, count, ratio)
        exact = exact or theirs
        same = sum(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        own = sum(torch.equal(*pair) for pair in zip(exact, theirs, strict=True))
        case = f"width {width}, spread {spread}, {count} tokens, ratio {ratio}"
        yield Row("VisPruner", case, name_of(dtype), None, None, "random features of 576 patches", same, images, own)
