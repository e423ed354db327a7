"""Every GPU kernel against float64, values and gradients, beside stock PyTorch in the same dtype on the same GPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from python_tests._cases import DTYPES
from python_tests._errors import assert_obeys_the_error_rule
from python_tests._operators import LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, Subject
from python_tests.gpu._gpu import need, on_gpu, over_kernels

pytestmark = pytest.mark.gpu

ATTENTION: dict[str, dict[str, Any]] = {
    "grid": {},
    "indexed, absent keys": {"indexed": True},
    "a head of keys a head": {"kv_heads": 4, "value_width": 12},
    "levels": {"width": (8, 3, 5)},
    "two tiles of heads": {"heads": 36, "kv_heads": 2},
    "two steps of channels": {"width": 150, "value_width": 140},
    "the largest window": {"window": (8, 8)},
    "everything, grid": {"value_width": 7, "bias": "shared", "saliency": True, "scale": -0.7},
    "everything, indexed": {"indexed": True, "value_width": 5, "bias": "per window", "saliency": True, "peaked": 4.0},
}

CROSS_ATTENTION: dict[str, dict[str, Any]] = {
    "grid": {},
    "indexed, absent keys": {"indexed": True},
    "norm over all": {"norm": "all", "norm_shift": False},
    "everything, grid": {"norm": "level", "biases": True, "bias": "per window", "saliency": "value", "scale": 0.3},
    "everything, indexed": {"indexed": True, "norm": "all", "biases": True, "bias": "shared", "saliency": "feature"},
    "several blocks of wide levels": {"windows": (12, 12), "heads": 24, "head_dim": 16, "widths": (512, 264)},
}


def assert_obeys(subject: Subject, backend: str, wanted: Sequence[str] | None = None, **spec: Any) -> None:
    need(subject, backend)
    assert_obeys_the_error_rule(
        on_gpu(subject.run(backend)),
        on_gpu(subject.run("reference")),
        subject.run("reference"),
        functools.partial(subject.call, **spec),
        draws=6,
        wanted=wanted,
        norms=["root_mean_square"],  # of few and small tensors: the largest of a few numbers is luck
        skip=["d key_bias"],  # exactly zero; stock PyTorch's is what rounding leaves of it
    )


@over_kernels(LOCAL_ATTENTION)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", ATTENTION.values(), ids=ATTENTION.keys())
def test_local_attention(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    assert_obeys(LOCAL_ATTENTION, backend, dtype=dtype, **spec)


@over_kernels(LOCAL_CROSS_ATTENTION)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", CROSS_ATTENTION.values(), ids=CROSS_ATTENTION.keys())
def test_local_cross_attention(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    assert_obeys(LOCAL_CROSS_ATTENTION, backend, dtype=dtype, **spec)


# What a kernel leaves out where nobody asks for it may be what another thread was held up by.
@over_kernels(LOCAL_ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", ["query", "key", "saliency", "attention_bias"])
def test_a_gradient_of_local_attention_alone(wanted: str, dtype: torch.dtype, backend: str) -> None:
    spec = {"heads": 36, "kv_heads": 1, "width": 300, "bias": "shared", "saliency": True}
    assert_obeys(LOCAL_ATTENTION, backend, [wanted], dtype=dtype, **spec)


@over_kernels(LOCAL_CROSS_ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", ["query", "features[0]", "value_weight", "norm_weight", "saliency"])
def test_a_gradient_of_local_cross_attention_alone(wanted: str, dtype: torch.dtype, backend: str) -> None:
    spec = {"heads": 20, "widths": (130, 200), "norm": "level", "saliency": "value"}
    assert_obeys(LOCAL_CROSS_ATTENTION, backend, [wanted], dtype=dtype, **spec)


@over_kernels(LOCAL_CROSS_ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_papers_shapes(side: int, dtype: torch.dtype, backend: str) -> None:
    need(LOCAL_CROSS_ATTENTION, backend)
    sizes = {"windows": (24 // side, 24 // side), "window": (side, side), "heads": 24, "head_dim": 128}
    assert_obeys_the_error_rule(
        on_gpu(LOCAL_CROSS_ATTENTION.run(backend)),
        on_gpu(LOCAL_CROSS_ATTENTION.run("reference")),
        on_gpu(LOCAL_CROSS_ATTENTION.run("reference")),  # float64 takes the GPU here
        functools.partial(LOCAL_CROSS_ATTENTION.call, dtype=dtype, batch=1, widths=(1024,) * 3, **sizes),
        draws=1,
    )
