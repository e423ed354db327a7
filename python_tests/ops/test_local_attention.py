"""``local_attention`` over its whole contract: the reference against loops, the backends against the error rule."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import vr_kernels
from python_tests._cases import DTYPES, attention_call
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import LOCAL_ATTENTION, backends_of

BACKENDS = backends_of(LOCAL_ATTENTION)

CONTRACT: dict[str, dict[str, Any]] = {
    "grid": {},
    "grid, one window": {"batch": 1, "windows": (1, 1), "window": (3, 4)},
    "grid, every slot of its own": {"window": (1, 1)},
    "indexed, absent keys": {"indexed": True},
    "ragged, overlapping": {"ragged": True},
    "values given": {"value_width": 5},
    "indexed, values given": {"indexed": True, "value_width": 12},
    "a head of keys a head": {"kv_heads": 4},
    "one head of keys": {"kv_heads": 1},
    "levels": {"width": (8, 3, 5)},
    "indexed levels": {"indexed": True, "width": (4, 12)},
    "bias": {"bias": "shared"},
    "bias a window": {"bias": "per window"},
    "indexed, bias a window": {"indexed": True, "bias": "per window"},
    "saliency": {"saliency": True},
    "scale": {"scale": -0.7},
    "peaked": {"peaked": 8.0},
    "ragged, saliency": {"ragged": True, "saliency": True, "value_width": 5},
    "everything, grid": {"value_width": 7, "bias": "shared", "saliency": True, "scale": 0.5, "kv_heads": 2},
    "everything, indexed": {"indexed": True, "value_width": 7, "bias": "per window", "saliency": True, "peaked": 4.0},
    "everything, levels": {"indexed": True, "width": (5, 11), "bias": "per window", "saliency": True},
}
contract = pytest.mark.parametrize("spec", CONTRACT.values(), ids=CONTRACT.keys())


@contract
def test_reference_is_the_loop_over_windows(spec: dict[str, Any]) -> None:
    call = attention_call(dtype=torch.float64, **spec)
    cotangents = random_cotangents(LOCAL_ATTENTION.run("reference"), call)
    reference = evaluate(LOCAL_ATTENTION.run("reference"), call, cotangents)
    loops = evaluate(LOCAL_ATTENTION.oracle, call, cotangents)
    torch.testing.assert_close(reference, loops, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@contract
def test_backends_obey_the_error_rule(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    LOCAL_ATTENTION.assert_obeys_the_error_rule(
        backend,
        lambda seed: attention_call(seed, dtype=dtype, **spec),
    )


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    return {
        "indexed": draw(st.booleans()),
        "ragged": draw(st.booleans()),
        "batch": draw(st.integers(1, 3)),
        "windows": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "window": draw(st.tuples(st.integers(1, 5), st.integers(1, 4))),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 5)),
        "width": draw(st.sampled_from([1, 2, 7, 16, 31, 64, 97])),
        "value_width": draw(st.sampled_from([None, 1, 13, 32])),
        "bias": draw(st.sampled_from([None, "shared", "per window"])),
        "saliency": draw(st.booleans()),
        "peaked": draw(st.sampled_from([0.1, 1.0, 5.0])),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@hypothesis.given(spec=shapes())
def test_shapes_of_every_kind_obey_the_error_rule(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    LOCAL_ATTENTION.assert_obeys_the_error_rule(
        backend,
        lambda seed: attention_call(seed, dtype=dtype, **spec),
        draws=6,
        norms=["root_mean_square"],  # the largest of a few numbers is luck
    )


@pytest.mark.parametrize("backend", [None, *BACKENDS, "reference"])
def test_outputs_come_in_the_order_asked_for(backend: str | None) -> None:
    call = attention_call(backend=backend)
    out, lse, attention = vr_kernels.local_attention(**call, return_lse=True, return_attention=True)
    assert (out.shape, lse.shape, attention.shape) == ((2, 2, 3, 4, 8), (2, 2, 3, 4), (2, 2, 3, 4, 6))
    assert torch.equal(vr_kernels.local_attention(**call), out)
    assert torch.equal(vr_kernels.local_attention(**call, return_lse=True)[1], lse)
    assert torch.equal(vr_kernels.local_attention(**call, return_attention=True)[1], attention)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_is_float32_and_attention_has_the_query_s_dtype(dtype: torch.dtype, backend: str) -> None:
    out, lse, attention = LOCAL_ATTENTION.run(backend)(**attention_call(dtype=dtype))
    assert (out.dtype, lse.dtype, attention.dtype) == (dtype, torch.float32, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_left_out_are_the_keys(backend: str) -> None:
    call = attention_call(indexed=True)
    given = vr_kernels.local_attention(**call, value=call["key"], backend=backend)
    torch.testing.assert_close(vr_kernels.local_attention(**call, backend=backend), given, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_all_the_same_give_the_query_no_gradient(dtype: torch.dtype) -> None:
    # Probabilities miss their sum of one by rounding, and that must not come out as a gradient.
    call = attention_call(dtype=dtype, value_width=16, window=(3, 3), peaked=3.0)
    call["value"] = call["value"][:1, :1, :1].expand_as(call["value"])
    call["query"].requires_grad_()
    out = vr_kernels.local_attention(**call, backend="cpu")
    assert isinstance(out, torch.Tensor)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), call["query"])
    assert not gradient.any()
