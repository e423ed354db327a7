"""What the coverage matrix leaves out: options together, several tiles and blocks, sizes of every kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from python_tests._cases import Call
from python_tests._operators import DEFORMABLE_ATTENTION, LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, Subject
from vr_kernels.ops.local_cross_attention import op

DTYPES = [torch.float32, torch.bfloat16]

ATTENTION: dict[str, dict[str, Any]] = {
    "everything, grid": {"value_width": 7, "bias": "shared", "saliency": True, "scale": -0.7},
    "everything, indexed": {"indexed": True, "value_width": 5, "bias": "per window", "saliency": True, "peaked": 4.0},
    "everything, levels": {"indexed": True, "width": (5, 11), "bias": "per window", "saliency": True},
    "two tiles of heads": {"heads": 36, "kv_heads": 2, "windows": (1, 2)},
    "two steps of channels": {"width": 150, "value_width": 140, "windows": (1, 2)},
    "the largest window": {"window": (8, 8), "windows": (1, 2)},
}

CROSS_ATTENTION: dict[str, dict[str, Any]] = {
    "everything, grid": {
        "batch": 2, "norm": "level", "biases": True, "bias": "per window", "saliency": "value", "scale": 0.3,
    },
    "everything, indexed": {"indexed": True, "norm": "all", "biases": True, "bias": "shared", "saliency": "feature"},
    "norm without shift": {"norm": "all", "norm_shift": False, "indexed": True, "norm_eps": 0.3},
    "norm without epsilon": {"norm": "level", "norm_eps": 0.0, "indexed": True},
    "two steps of channels in one level": {"widths": (150, 8), "norm": "level", "windows": (1, 2)},
    "a window that fills 32 slots": {"window": (5, 4), "windows": (1, 2), "saliency": "value"},
}  # fmt: skip


DEFORMABLE: dict[str, dict[str, Any]] = {
    "everything": {"sizes": ((4, 6), (3, 5), (1, 2)), "outside": 0.6},
    "two steps of channels": {"width": 150, "queries": 2},
    "one point of one channel": {"width": 1, "points": 1, "heads": 1},
    "five points, padded to eight": {"points": 5, "auxiliary": None},
}


CROSS_ATTENTION_KERNELS = pytest.mark.parametrize("backend", ["triton", "triton_fused"])


def assert_obeys(subject: Subject, backend: str = "triton", draws: int = 2, **spec: Any) -> None:
    def draw(seed: int) -> Call:
        return subject.call(seed, **{"batch": 1} | spec)

    subject.assert_obeys_the_error_rule(
        backend,
        draw,
        draws=draws,
        norms=["root_mean_square"],  # of few and small tensors: the largest of a few numbers is luck
        skip=["d key_bias"],  # exactly zero; stock PyTorch's is what rounding leaves of it
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", ATTENTION.values(), ids=ATTENTION.keys())
def test_local_attention(spec: dict[str, Any], dtype: torch.dtype) -> None:
    assert_obeys(LOCAL_ATTENTION, dtype=dtype, **spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", CROSS_ATTENTION.values(), ids=CROSS_ATTENTION.keys())
@CROSS_ATTENTION_KERNELS
def test_local_cross_attention(backend: str, spec: dict[str, Any], dtype: torch.dtype) -> None:
    assert_obeys(LOCAL_CROSS_ATTENTION, backend, dtype=dtype, **spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", DEFORMABLE.values(), ids=DEFORMABLE.keys())
def test_deformable_attention(spec: dict[str, Any], dtype: torch.dtype) -> None:
    assert_obeys(DEFORMABLE_ATTENTION, dtype=dtype, **spec)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("indexed", [False, True])
def test_blocks_of_a_few_queries_and_heads(indexed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(op.ENGINES["triton"], least_heads=3, block_bytes=1500)
    monkeypatch.setitem(op.ENGINES, "triton", small)
    spec = CROSS_ATTENTION["everything, indexed"] | {"indexed": indexed, "bias": "per window", "saliency": "value"}
    assert_obeys(LOCAL_CROSS_ATTENTION, dtype=dtype, **spec)


@st.composite
def attention_shapes(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    return {
        "indexed": draw(st.booleans()),
        "windows": draw(st.tuples(st.integers(1, 2), st.integers(2, 3))),
        "window": draw(st.tuples(st.integers(1, 5), st.integers(1, 4))),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 5)),
        "width": draw(st.sampled_from([2, 7, 16, 31, 97])),
        "value_width": draw(st.sampled_from([None, 5, 13, 32])),
        "bias": draw(st.sampled_from([None, "shared", "per window"])),
        "saliency": draw(st.booleans()),
        "peaked": draw(st.sampled_from([0.1, 1.0, 5.0])),
        "dtype": draw(st.sampled_from(DTYPES)),
    }


@st.composite
def cross_attention_shapes(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "indexed": draw(st.booleans()),
        "windows": draw(st.tuples(st.integers(1, 2), st.integers(2, 3))),
        "window": draw(st.tuples(st.integers(1, 5), st.integers(1, 4))),
        "heads": draw(st.sampled_from([1, 2, 3, 5, 9, 17])),
        "head_dim": draw(st.sampled_from([3, 8, 16])),
        "widths": draw(st.sampled_from([(2,), (37,), (16, 16), (5, 3, 31)])),
        "biases": draw(st.booleans()),
        "norm": draw(st.sampled_from([None, "all", "level"])),
        "bias": draw(st.sampled_from([None, "shared", "per window"])),
        "saliency": draw(st.sampled_from([None, "value", "feature"])),
        "peaked": draw(st.sampled_from([0.1, 1.0, 5.0])),
        "dtype": draw(st.sampled_from(DTYPES)),
    }


@hypothesis.settings(max_examples=8)
@hypothesis.given(spec=attention_shapes())
def test_local_attention_of_every_shape(spec: dict[str, Any]) -> None:
    assert_obeys(LOCAL_ATTENTION, draws=5, **spec)


@hypothesis.settings(max_examples=5)
@hypothesis.given(spec=cross_attention_shapes())
@CROSS_ATTENTION_KERNELS
def test_local_cross_attention_of_every_shape(backend: str, spec: dict[str, Any]) -> None:
    assert_obeys(LOCAL_CROSS_ATTENTION, backend, draws=5, **spec)
