"""Random calls of both operators, small but of every kind that the kernels treat differently."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from python_tests._cases import Call, attention_call, cross_attention_call, map_tensors

# Around the 16 bytes of a vector and the 256 of a chunk, in 16-bit and in 32-bit numbers.
WIDTHS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 40, 63, 64, 65, 72, 100, 127, 128, 129, 136, 200, 257]


def draw_attention(seed: int, dtype: torch.dtype) -> Call:
    rng = random.Random(f"attention {seed}")
    kv_heads = rng.choice([1, 1, 2, 3])
    spec = _shared_spec(rng) | {"kv_heads": kv_heads, "heads": kv_heads * rng.choice([1, 2, 5, 8, 16, 17])}
    if kv_heads == 1 and rng.random() < 0.5:
        spec["width"] = tuple(rng.choices(WIDTHS, k=rng.randint(1, 4)))
    else:
        spec["width"] = rng.choice(WIDTHS)
    if isinstance(spec["width"], int) and rng.random() < 0.4:
        spec["value_width"] = rng.choice(WIDTHS)
    return attention_call(seed, dtype=dtype, saliency=rng.random() < 0.5, **spec)


def draw_cross_attention(seed: int, dtype: torch.dtype) -> Call:
    rng = random.Random(f"cross-attention {seed}")
    return cross_attention_call(
        seed,
        dtype=dtype,
        heads=rng.choice([1, 2, 7, 8, 16, 18]),
        head_dim=rng.choice([1, 3, 8]),
        widths=rng.choices(WIDTHS, k=rng.randint(1, 3)),
        biases=rng.random() < 0.5,
        norm=rng.choice([None, "all", "level"]),
        norm_shift=rng.random() < 0.5,
        saliency=rng.choice([None, "value", "feature"]),
        **_shared_spec(rng),
    )


def _shared_spec(rng: random.Random) -> dict[str, Any]:
    # Mostly the papers' windows; up to 64 keys.
    sides = (rng.randint(1, 4), rng.randint(1, 4)) if rng.random() < 0.8 else (rng.randint(4, 8), rng.randint(4, 8))
    return {
        "indexed": rng.random() < 0.5,
        "batch": rng.randint(1, 2),
        "windows": (rng.randint(1, 2), rng.randint(1, 2)),
        "window": sides,
        "bias": rng.choice([None, "shared", "per window"]),
        "peaked": rng.choice([0.1, 1.0, 5.0]),
    }


def strided(call: Call, seed: int) -> Call:
    """The same numbers as slices of wider tensors: other strides, other alignments."""
    rng = random.Random(seed)

    def widen(tensor: Tensor) -> Tensor:
        left, right = rng.choice([0, 1, 8]), rng.choice([0, 3, 8])
        return functional.pad(tensor, (left, right), value=float("nan"))[..., left : left + tensor.shape[-1]]

    return map_tensors(call, widen)
