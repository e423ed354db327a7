"""Nothing to attend to, nothing to compute, and numbers that are not numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests._cases import DTYPES, Call
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import WINDOWED, Subject, over_backends

runs = over_backends("reference", subjects=WINDOWED)


def full(subject: Subject, **spec: Any) -> Call:
    """A call with every argument that can meet an empty window."""
    given: dict[str, Any] = {"bias": "per window", "saliency": True}
    if subject.name == "local_cross_attention":
        given |= {"biases": True, "norm": "level", "saliency": "value"}
    return subject.call(**(given | spec))


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_query_without_a_key_returns_zeros_and_gives_no_nan(
    subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    function, call = subject.run(backend), full(subject, dtype=dtype, indexed=True)
    assert (call["window_index"][0] == -1).all()
    results = evaluate(function, call, random_cotangents(function, call))
    assert not results["output 0"][0].any()
    assert not results["output 0"][-1].eq(0).all()
    assert not results[f"output {len(subject.outputs)}"][0].any()
    for name, result in results.items():
        assert not result.isnan().any(), name
    assert not results["d query"][0].any()


@runs
def test_a_bias_of_minus_infinity_is_an_absent_key(subject: Subject, backend: str) -> None:
    call = full(subject, indexed=True)
    masked = call["window_index"] == -1
    bias = call["attention_bias"].masked_fill(masked[:, None, :], -torch.inf)
    by_bias = call | {"attention_bias": bias, "window_index": call["window_index"].clamp(min=0)}
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected, result = evaluate(function, call, cotangents), evaluate(function, by_bias, cotangents)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@runs
@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_the_bias_of_an_absent_key_does_not_matter(subject: Subject, backend: str, value: float) -> None:
    call = full(subject, indexed=True)
    absent = (call["window_index"] == -1)[:, None, :]
    other = call | {"attention_bias": call["attention_bias"].masked_fill(absent, value)}
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected, result = evaluate(function, call, cotangents), evaluate(function, other, cotangents)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@runs
def test_a_bias_of_minus_infinity_everywhere_returns_zeros(subject: Subject, backend: str) -> None:
    call = full(subject)
    call["attention_bias"] = torch.full_like(call["attention_bias"], -torch.inf)
    function = subject.run(backend)
    results = evaluate(function, call, random_cotangents(function, call))
    for name, result in results.items():
        expected = -torch.inf if subject.name == "local_attention" and name == "output 1" else 0.0
        assert (result == expected).all(), name


@runs
def test_saliency_of_zero_silences_a_value_and_keeps_its_weight(subject: Subject, backend: str) -> None:
    call = full(subject)
    silent = call | {"saliency": torch.zeros_like(call["saliency"])}
    function = subject.run(backend)
    out, *rest = function(**silent)
    assert not out.any()
    for kept, expected in zip(rest, function(**call)[1:], strict=True):
        torch.testing.assert_close(kept, expected, rtol=0, atol=0)


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_a_feature_reaches_the_windows_that_read_it_and_no_other(
    subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    call = subject.call(dtype=dtype)  # (2, 4, 9) rows in (2, 2, 3) windows of 2 x 3
    name = "key" if subject.name == "local_attention" else "features"
    level = call[name][1] if isinstance(call[name], list) else call[name]
    level[1, 3, 4] = torch.nan
    out = subject.run(backend)(**call)[0].isnan().flatten(3).any(-1)
    expected = torch.zeros(2, 2, 3, dtype=torch.bool)
    expected[1, 1, 1] = True
    assert torch.equal(out, expected)


@runs
def test_nan_in_a_row_that_nobody_reads_reaches_no_output(subject: Subject, backend: str) -> None:
    call = subject.call(indexed=True)
    call["window_index"][call["window_index"] == 0] = -1  # absent slots must not stand for row 0 either
    for level in [call["key"]] if "key" in call else call["features"]:
        level[0] = torch.nan
    for result in subject.run(backend)(**call):
        assert not result.isnan().any()


@runs
def test_nan_in_a_query_reaches_its_own_output_and_no_other(subject: Subject, backend: str) -> None:
    call = subject.call(heads=4)
    call["query"][1, 0, 2] = torch.nan
    out = subject.run(backend)(**call)[0].isnan()
    assert out[1, 0, 2].all()
    assert out.sum() == out[1, 0, 2].numel()


@runs
def test_large_scores_do_not_overflow(subject: Subject, backend: str) -> None:
    call = subject.call(scale=1e4)
    out, *_, attention = subject.run(backend)(**call)
    assert out.isfinite().all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def change(call: Call, names: set[str], function: Callable[[Tensor], Tensor]) -> Call:
    """The call with ``function`` applied to the named tensors and lists of tensors."""
    changed = {
        name: [function(level) for level in value] if isinstance(value, list) else function(value)
        for name, value in call.items()
        if name in names
    }
    return call | changed


FEATURES = {"key", "features", "saliency"}
NOTHING: dict[str, Callable[[Subject], Call]] = {
    "no image": lambda s: change(full(s, bias=None), {"query", *FEATURES}, lambda t: t[:0]),
    "no query": lambda s: change(full(s, bias=None, indexed=True), {"query", "window_index"}, lambda t: t[:0]),
    "no slot": lambda s: change(full(s, bias=None, indexed=True), {"window_index"}, lambda t: t[:, :0]),
    "no key": lambda s: change(full(s, indexed=True), {"window_index"}, lambda t: torch.full_like(t, -1)),
    "no feature row": lambda s: change(NOTHING["no key"](s), FEATURES, lambda t: t[:0]),
}


@runs
@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING.keys())
def test_nothing_to_compute_gives_empty_or_zero_results(
    subject: Subject, backend: str, nothing: Callable[[Subject], Call]
) -> None:
    call = nothing(subject)
    function = subject.run(backend)
    results = evaluate(function, call, random_cotangents(function, call))
    assert results["output 0"].shape == call["query"].shape
    for name, result in results.items():
        expected = -torch.inf if subject.name == "local_attention" and name == "output 1" else 0.0
        assert (result == expected).all(), name
