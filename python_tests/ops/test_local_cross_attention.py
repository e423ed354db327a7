"""``local_cross_attention`` over its whole contract: definitions against loops, backends against the error rule."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import vr_kernels
from python_tests._cases import DTYPES, Call, cross_attention_call, floating_tensors, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import LOCAL_CROSS_ATTENTION, backends_of

BACKENDS = backends_of(LOCAL_CROSS_ATTENTION)
# Gradients of the key bias are exactly zero, and stock PyTorch's are what rounding leaves of it: no yardstick.
SKIPPED = ["d key_bias"]

CONTRACT: dict[str, dict[str, Any]] = {
    "grid": {},
    "one level": {"widths": (40,)},
    "every slot of its own": {"window": (1, 1)},
    "indexed, absent keys": {"indexed": True},
    "ragged, overlapping": {"ragged": True},
    "biases": {"biases": True},
    "indexed, biases": {"indexed": True, "biases": True},
    "bias": {"bias": "shared"},
    "indexed, bias a window": {"indexed": True, "bias": "per window"},
    "saliency on values": {"saliency": "value", "biases": True},
    "saliency on features": {"saliency": "feature", "biases": True},
    "indexed, saliency on values": {"indexed": True, "saliency": "value", "biases": True},
    "indexed, saliency on features": {"indexed": True, "saliency": "feature", "biases": True},
    "norm over all": {"norm": "all"},
    "norm of each level": {"norm": "level"},
    "norm without shift": {"norm": "all", "norm_shift": False},
    "norm of each level without shift": {"norm": "level", "norm_shift": False, "indexed": True},
    "norm with a large epsilon": {"norm": "level", "norm_eps": 0.3},
    "norm, saliency on values": {"norm": "level", "saliency": "value"},
    "norm, saliency on features": {"norm": "all", "saliency": "feature"},
    "scale": {"scale": -0.2},
    "peaked": {"peaked": 6.0},
    "ragged, norm and saliency": {"ragged": True, "norm": "level", "saliency": "value", "biases": True},
    "everything, grid": {"norm": "level", "biases": True, "bias": "per window", "saliency": "value", "scale": 0.3},
    "everything, indexed": {
        "indexed": True, "norm": "all", "biases": True, "bias": "shared", "saliency": "feature", "peaked": 3.0,
    },
}  # fmt: skip
contract = pytest.mark.parametrize("spec", CONTRACT.values(), ids=CONTRACT.keys())


@pytest.mark.parametrize("backend", ["reference", "absorbed", "unabsorbed"])
@contract
def test_float64_is_the_loop_over_windows(spec: dict[str, Any], backend: str) -> None:
    call = cross_attention_call(dtype=torch.float64, **spec)
    function = LOCAL_CROSS_ATTENTION.run(backend)
    cotangents = random_cotangents(function, call)
    result = evaluate(function, call, cotangents)
    loops = evaluate(LOCAL_CROSS_ATTENTION.oracle, call, cotangents)
    torch.testing.assert_close(result, loops, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@contract
def test_backends_obey_the_error_rule(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    LOCAL_CROSS_ATTENTION.assert_obeys_the_error_rule(
        backend,
        lambda seed: cross_attention_call(seed, dtype=dtype, **spec),
        # The absorbed baseline is stock PyTorch itself, whose outliers are not ours to bound.
        norms=["root_mean_square"] if backend == "absorbed" else ["root_mean_square", "largest"],
        skip=SKIPPED,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_norm_biases_and_saliency_obey_the_error_rule(dtype: torch.dtype, backend: str) -> None:
    spec = CONTRACT["everything, grid"] | {"auxiliary": torch.float32}
    LOCAL_CROSS_ATTENTION.assert_obeys_the_error_rule(
        backend,
        lambda seed: cross_attention_call(seed, dtype=dtype, **spec),
        skip=SKIPPED,
    )


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    head_dim = draw(st.sampled_from([1, 3, 8, 16]))
    return {
        "indexed": draw(st.booleans()),
        "ragged": draw(st.booleans()),
        "batch": draw(st.integers(1, 2)),
        "windows": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "window": draw(st.tuples(st.integers(1, 5), st.integers(1, 4))),
        "heads": draw(st.sampled_from([1, 2, 3, 5, 9, 17])),
        "head_dim": head_dim,
        "widths": draw(st.sampled_from([(2,), (37,), (16, 16), (5, 3, 31), (32, 64)])),
        "biases": draw(st.booleans()),
        "norm": draw(st.sampled_from([None, "all", "level"])),
        "bias": draw(st.sampled_from([None, "shared", "per window"])),
        "saliency": draw(st.sampled_from([None, "value", "feature"])),
        # The score of a single channel spreads so far that the errors of hundreds of draws are those of one.
        "peaked": draw(st.sampled_from([0.1, 1.0] if head_dim == 1 else [0.1, 1.0, 5.0])),
    }


def enough_draws(spec: dict[str, Any]) -> int:
    """So many that torch is not lucky in all: the numbers of a window and head err together, and a channel has one."""
    softmaxes = spec["batch"] * math.prod(spec["windows"]) * spec["heads"]
    return max(6, 96 // softmaxes, 96 // sum(spec["widths"]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@hypothesis.given(spec=shapes())
def test_shapes_of_every_kind_obey_the_error_rule(spec: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    LOCAL_CROSS_ATTENTION.assert_obeys_the_error_rule(
        backend,
        lambda seed: cross_attention_call(seed, dtype=dtype, **spec),
        draws=enough_draws(spec),
        norms=["root_mean_square"],  # the largest of a few numbers is luck
        # Two channels normalise to 1 and -1 whatever they are; what is computed of their gradient is rounding alone.
        skip=[*SKIPPED, "d features[0]"] if spec["norm"] and spec["widths"] == (2,) else SKIPPED,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_papers_shape_obeys_the_error_rule(dtype: torch.dtype) -> None:
    # v2: 24x24 patches, s = 3, three levels of 1024, 24 heads of 128, frozen features. Loops in float64 would take
    # minutes: here the reference in float64, which the loops hold to account, is exact.
    assert_obeys_the_error_rule(
        LOCAL_CROSS_ATTENTION.run("cpu"),
        LOCAL_CROSS_ATTENTION.run("reference"),
        LOCAL_CROSS_ATTENTION.run("reference"),
        lambda seed: cross_attention_call(
            seed, dtype=dtype, batch=1, windows=(8, 8), window=(3, 3), heads=24, head_dim=128, widths=(1024,) * 3
        ),
        draws=1,
        wanted=["query", "key_weight", "value_weight"],
    )


def test_float16_weights_may_be_too_large_for_what_absorption_multiplies_them_by() -> None:
    # W_k^T q and W_v^T dO pass 65504 here, while keys, values and all gradients of the definition stay far below it.
    def draw(seed: int) -> Call:
        call = cross_attention_call(seed, norm=None, scale=1e-3)
        call["features"] = [level * 1e-3 for level in call["features"]]
        call |= {"query": call["query"] * 20, "key_weight": call["key_weight"] * 14_000}
        call["value_weight"] = call["value_weight"] * 70_000
        return map_tensors(call, torch.Tensor.half)

    call = draw(0)
    query, key_weight = call["query"].unflatten(-1, (4, 8)), call["key_weight"].unflatten(0, (4, 8))
    absorbed = torch.einsum("bijhd,hdc->bijhc", query, key_weight)
    assert absorbed.isinf().any()
    LOCAL_CROSS_ATTENTION.assert_obeys_the_error_rule(
        "cpu",
        draw,
        wanted=["query", "value_weight", "key_weight"],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("indexed", [False, True])
def test_the_key_bias_cancels_and_its_gradient_is_exactly_zero(indexed: bool, backend: str) -> None:
    call = cross_attention_call(indexed=indexed, biases=True, saliency="value")
    function = LOCAL_CROSS_ATTENTION.run(backend)
    gradients = evaluate(function, call, random_cotangents(function, call))
    assert torch.equal(gradients["d key_bias"], torch.zeros_like(call["key_bias"]))


@pytest.mark.parametrize("backend", [None, *BACKENDS, "reference"])
def test_attention_comes_only_when_asked_for(backend: str | None) -> None:
    call = cross_attention_call(backend=backend)
    out, attention = vr_kernels.local_cross_attention(**call, return_attention=True)
    assert (out.shape, attention.shape) == ((2, 2, 3, 32), (2, 2, 3, 4, 6))
    assert torch.equal(vr_kernels.local_cross_attention(**call), out)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 3, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_is_one_level(backend: str) -> None:
    call = cross_attention_call(widths=(24,), backend=backend)
    (level,) = call["features"]
    alone = vr_kernels.local_cross_attention(**(call | {"features": level}))
    assert torch.equal(vr_kernels.local_cross_attention(**call), alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("indexed", [False, True])
def test_each_gradient_is_the_same_whether_asked_for_alone_or_with_all(indexed: bool, backend: str) -> None:
    call = cross_attention_call(indexed=indexed, norm="all", biases=True, bias="per window", saliency="value")
    function = LOCAL_CROSS_ATTENTION.run(backend)
    cotangents = random_cotangents(function, call)
    together = evaluate(function, call, cotangents)
    for name in floating_tensors(call):
        alone = evaluate(function, call, cotangents, wanted=[name])
        torch.testing.assert_close(alone[f"d {name}"], together[f"d {name}"], rtol=1e-5, atol=1e-6, msg=name)
