"""Importance in Triton beyond the coverage matrix: several tiles, sizes that fill none, and the edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vr_kernels
from python_tests._cases import DTYPES
from python_tests._errors import assert_obeys_the_error_rule, evaluate
from python_tests._importance import importance_call, received_call
from python_tests._operators import ATTENTION_IMPORTANCE, ATTENTION_RECEIVED, Subject
from python_tests.ops.test_attention_importance import (  # noqa: F401
    test_a_nan_stays_in_its_own_row,
    test_empty_calls_give_empty_results,
    test_heads_are_reduced_before_rows,
    test_hidden_keys_are_never_read,
    test_large_scores_neither_overflow_nor_vanish,
    test_one_row_is_that_row_of_the_attention_map,
)

# Tiles have 16 rows and 64 keys, fewer of wide heads.
IMPORTANCE: dict[str, dict[str, Any]] = {
    "several tiles of keys and rows": {"tokens": 131, "rows": 17, "mask": True},
    "tiles across short sequences": {"packed": True, "batch": 7, "tokens": 23, "rows": 5},
    "scores across short sequences": {"packed": True, "batch": 7, "tokens": 23, "normalize": "none"},
    "one channel": {"width": 1, "heads": 3, "kv_heads": 1, "rows": 1},
    "the widest heads": {"width": 256, "tokens": 37, "heads": 1, "kv_heads": 1},
    "channels that fill no tile": {"width": 72, "tokens": 67, "peaked": 8.0, "scale": -0.4},
}


def assert_obeys(subject: Subject, dtype: torch.dtype, options: dict[str, Any]) -> None:
    reference = subject.run("reference")
    assert_obeys_the_error_rule(
        subject.run("triton"),
        reference,
        reference,
        lambda seed: subject.call(seed, dtype=dtype, reduce_heads=None, **options),
        draws=2,
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", IMPORTANCE)
def test_importance_obeys_the_error_rule(case: str, dtype: torch.dtype) -> None:
    assert_obeys(ATTENTION_IMPORTANCE, dtype, IMPORTANCE[case])


# Tiles have 64 rows and columns at most, in float32 32.
RECEIVED: dict[str, dict[str, Any]] = {
    "several tiles": {"tokens": 131, "heads": 2, "kv_heads": 1},
    "several tiles, causal": {"tokens": 131, "heads": 2, "kv_heads": 1, "causal": True, "peaked": 4.0},
    "tiles across short sequences": {"packed": True, "batch": 7, "tokens": 19, "causal": True},
    "a given log-sum-exp": {"packed": True, "batch": 3, "tokens": 47, "lse": True, "scale": -0.4},
    "one channel": {"width": 1, "heads": 3, "kv_heads": 1},
    "the widest heads": {"width": 256, "tokens": 37, "heads": 1, "kv_heads": 1},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", RECEIVED)
def test_received_obeys_the_error_rule(case: str, dtype: torch.dtype) -> None:
    assert_obeys(ATTENTION_RECEIVED, dtype, RECEIVED[case])


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (2, 1)])
def test_received_takes_the_smallest_calls(batch: int, tokens: int) -> None:
    call = received_call(batch=batch, tokens=tokens)
    results = evaluate(ATTENTION_RECEIVED.run("triton"), call, [torch.ones(batch, tokens)])
    assert torch.equal(results["output 0"], torch.ones(batch, tokens))
    torch.testing.assert_close(results["d query"], torch.zeros_like(call["query"]), rtol=0, atol=1e-6)


def test_a_gradient_of_received_alone_is_the_same() -> None:
    call = received_call(lse=True)
    expected = evaluate(ATTENTION_RECEIVED.run("reference"), call, [torch.ones(2, 7)])
    for name in ("query", "key", "lse"):
        arguments = call | {name: call[name].clone().requires_grad_()}
        vr_kernels.attention_received(**arguments, backend="triton").sum().backward()
        torch.testing.assert_close(arguments[name].grad, expected[f"d {name}"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("given_lse", [False, True], ids=["own log-sum-exp", "given log-sum-exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "gradient"])
def test_a_nan_does_not_pass_from_one_packed_sequence_to_its_neighbours(
    where: str, dtype: torch.dtype, given_lse: bool, causal: bool
) -> None:
    # All three in one tile.
    call = received_call(dtype=dtype, packed=True, batch=3, tokens=5, lse=given_lse, causal=causal)
    call["cu_seqlens"] = torch.tensor([0, 4, 10, 15])
    cotangent = torch.randn(15)
    expected = evaluate(ATTENTION_RECEIVED.run("triton"), call, [cotangent.to(dtype)])
    for number in (torch.nan, torch.inf):
        changed, poisoned = call | {}, cotangent.clone()
        if where == "gradient":
            poisoned[6] = number
        else:
            changed[where] = call[where].clone()
            changed[where][6, :, 1] = number
        results = evaluate(ATTENTION_RECEIVED.run("triton"), changed, [poisoned.to(dtype)])
        for name, result in results.items():
            neighbours = torch.tensor([*range(4), *range(10, 15)])
            assert torch.equal(result[neighbours], expected[name][neighbours]), (name, number)
        if number is torch.nan:
            assert results["d query"][6:10].isnan().any()
            assert results["d key"][4:10].isnan().any()


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with every stride another and NaN between them."""
    apart = torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)
    return apart.transpose(-3, -2).contiguous().transpose(-3, -2)[..., 0]


@pytest.mark.parametrize("packed", [False, True])
def test_importance_reads_any_strides(packed: bool) -> None:
    call = importance_call(packed=packed, tokens=19)
    cotangents = [torch.randn(38 if packed else (2, 19))]
    expected = evaluate(ATTENTION_IMPORTANCE.run("triton"), call, cotangents)
    call |= {name: strided(call[name]) for name in ("query_rows", "key")}
    for name, result in evaluate(ATTENTION_IMPORTANCE.run("triton"), call, cotangents).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)


def test_received_reads_any_strides() -> None:
    call = received_call(tokens=19)
    expected = evaluate(ATTENTION_RECEIVED.run("triton"), call, [torch.ones(2, 19)])
    call |= {name: strided(value) for name, value in call.items()}
    for name, result in evaluate(ATTENTION_RECEIVED.run("triton"), call, [torch.ones(2, 19)]).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)


def test_a_gradient_of_importance_alone_is_the_same() -> None:
    call = importance_call()
    expected = evaluate(ATTENTION_IMPORTANCE.run("reference"), call, [torch.ones(2, 7)])
    for name in ("query_rows", "key"):
        arguments = call | {name: call[name].clone().requires_grad_()}
        vr_kernels.attention_importance(**arguments, backend="triton").sum().backward()
        torch.testing.assert_close(arguments[name].grad, expected[f"d {name}"])


def test_importance_refuses_wider_heads_by_name() -> None:
    with pytest.raises(ValueError, match="heads of up to 256 channels, these have 257"):
        vr_kernels.attention_importance(**importance_call(width=257), backend="triton")


def test_cls_saliency_takes_the_kernels_of_importance() -> None:
    query, key = torch.randn(2, 4, 16), torch.randn(2, 9, 4, 16)
    result = vr_kernels.cls_saliency(query, key, backend="triton")
    torch.testing.assert_close(result, vr_kernels.cls_saliency(query, key, backend="reference"))
