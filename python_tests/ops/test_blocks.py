"""Local cross-attention works block by block; how the blocks fall must not be seen in the result."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests._cases import DTYPES, cross_attention_call
from python_tests._errors import assert_obeys_the_error_rule
from python_tests._operators import LOCAL_CROSS_ATTENTION
from vr_kernels.ops.local_cross_attention import native, op

SIZES: list[dict[str, Any]] = [
    {"norm": "level", "saliency": "value", "bias": "per window", "biases": True},
    {"indexed": True, "norm": "all", "saliency": "feature", "bias": "shared", "biases": True},
    {"indexed": True, "bias": "per window", "batch": 3},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("heads", "queries"), [(1, 1), (2, 5), (3, 100)])
def test_small_blocks_obey_the_error_rule(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, sizes: dict[str, Any], heads: int, queries: int
) -> None:
    bytes_of_a_query = heads * 48 * native.block_dtype(dtype).itemsize  # the drawn features have 48 channels
    engine = dataclasses.replace(native.ENGINE, least_heads=heads, block_bytes=queries * bytes_of_a_query)
    monkeypatch.setitem(op.ENGINES, "cpu", engine)
    reference = LOCAL_CROSS_ATTENTION.run("reference")
    assert_obeys_the_error_rule(
        LOCAL_CROSS_ATTENTION.run("cpu"),
        reference,
        reference,
        lambda seed: cross_attention_call(seed, dtype=dtype, **sizes),
    )


def test_a_training_step_may_follow_an_inference_step() -> None:
    # Both write to the same reused buffers, and a tensor made in inference mode refuses autograd.
    call = cross_attention_call()
    with torch.inference_mode():
        vr_kernels.local_cross_attention(**call, backend="cpu")
    call["query"].requires_grad_()
    vr_kernels.local_cross_attention(**call, backend="cpu").sum().backward()
    assert call["query"].grad is not None
