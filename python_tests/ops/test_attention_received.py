"""``attention_received`` beyond the coverage matrix: memory, blocks, edges, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests import _importance
from python_tests._cases import DTYPES
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._importance import received_call
from python_tests._operators import ATTENTION_RECEIVED
from vr_kernels import _C
from vr_kernels.cli.measure.memory import Call, peak_memory
from vr_kernels.ops.attention_received import blocked, op
from vr_kernels.ops.attention_received.native import NativePass

BACKENDS = ["cpu", "blocked", "reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows a block, one kv head at a time."""
    monkeypatch.setitem(blocked.BLOCK_SCORES, "cpu", 1)


@backends
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_mean_over_all_rows_of_the_attention_map(causal: bool, backend: str) -> None:
    query, key = torch.randn(2, 4, 50, 16), torch.randn(2, 4, 50, 16)  # (B, h, N, d)
    scores = query @ key.mT / 4
    if causal:
        scores = scores.masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1).mean(2)  # (B, h, N)
    q, k = query.transpose(1, 2), key.transpose(1, 2)
    for reduce_heads, over_heads in (("mean", expected.mean(1)), ("max", expected.amax(1)), (None, expected)):
        result = vr_kernels.attention_received(q, k, causal=causal, reduce_heads=reduce_heads, backend=backend)
        torch.testing.assert_close(result, over_heads)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 4))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", [{}, {"causal": True}, {"packed": True, "lse": True}, {"causal": True, "lse": True}])
@pytest.mark.parametrize("backend", ["cpu", "blocked"])
def test_many_blocks_obey_the_error_rule(backend: str, spec: dict[str, Any], dtype: torch.dtype) -> None:
    subject = ATTENTION_RECEIVED
    assert_obeys_the_error_rule(
        subject.run(backend),
        subject.run("reference"),
        subject.run("reference"),
        lambda seed: subject.call(seed, dtype=dtype, batch=3, tokens=53, reduce_heads=None, **spec),
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("backend", ["cpu", "blocked"])
@pytest.mark.parametrize("peaked", [0.1, 8.0])
def test_long_sums_obey_the_error_rule(peaked: float, backend: str) -> None:
    subject = ATTENTION_RECEIVED
    assert_obeys_the_error_rule(
        subject.run(backend),
        subject.run("reference"),
        subject.run("reference"),
        lambda seed: subject.call(seed, batch=1, tokens=1301, heads=2, width=16, peaked=peaked),
        draws=2,
        norms=["root_mean_square"],
    )


@backends
@pytest.mark.parametrize("spec", [{}, {"causal": True, "packed": True}])
def test_the_scores_own_log_sum_exp_changes_nothing(spec: dict[str, Any], backend: str) -> None:
    call = received_call(heads=2, kv_heads=2, **spec)
    made = call["query"].new_zeros(call["query"].shape[:-1])
    for i, keys, span in _importance.sequences(call["key"], call.get("cu_seqlens")):
        rows = made[span] if "cu_seqlens" in call else made[i]
        for n, row in enumerate(call["query"][span] if "cu_seqlens" in call else call["query"][i]):
            rows[n] = _importance.scores_of(row, keys[: n + 1] if "causal" in spec else keys, None).logsumexp(-1)
    expected = vr_kernels.attention_received(**call, backend=backend)
    torch.testing.assert_close(vr_kernels.attention_received(**call, lse=made, backend=backend), expected)


def test_gradients_by_blocks_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocked.BLOCK_SCORES, "cpu", 1)
    for backend in ("blocked", "reference"):
        for spec in ({}, {"causal": True}, {"lse": True}, {"packed": True, "causal": True, "lse": True}):
            call = received_call(tokens=9, width=3, reduce_heads=None, **spec)
            call = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()}
            names = [name for name in ("query", "key", "lse") if name in call]
            tensors = [call.pop(name).requires_grad_() for name in names]

            def run(*values: Tensor, call: Any = call, names: Any = names, backend: str = backend) -> Tensor:
                return vr_kernels.attention_received(**dict(zip(names, values, strict=True)), **call, backend=backend)

            assert torch.autograd.gradcheck(run, tensors)


def test_a_gradient_asked_for_alone_is_the_same() -> None:
    call = received_call(lse=True)
    for name in ("query", "key", "lse"):
        arguments = call | {name: call[name].clone().requires_grad_()}
        vr_kernels.attention_received(**arguments).sum().backward()
        expected = evaluate(vr_kernels.attention_received, call, [torch.ones(2, 7)])[f"d {name}"]
        torch.testing.assert_close(arguments[name].grad, expected)


@pytest.mark.parametrize("name", ["query", "key", "lse"])
def test_gradients_that_nobody_asks_for_are_not_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[int]] = []
    backward = op.attention_received_backward

    def noted(*arguments: Any) -> Any:
        gradients = backward(*arguments)
        made.append([gradient.numel() for gradient in gradients])
        return gradients

    monkeypatch.setattr(op, "attention_received_backward", noted)
    call = received_call(lse=True)
    call[name].requires_grad_()
    vr_kernels.attention_received(**call).sum().backward()
    assert made == [[call[other].numel() if other == name else 0 for other in ("query", "key", "lse")]]


TOKENS = 16_384


def long_calls(backward: bool) -> dict[str, Call]:
    """What the memory test measures in a process of its own."""

    def run(tokens: int) -> None:
        query, key = (torch.randn(1, tokens, 1, 16, requires_grad=backward) for _ in range(2))
        received = vr_kernels.attention_received(query, key, backend="cpu")
        if backward:
            received.square().sum().backward()

    return {"ours": Call(lambda: run(64), lambda: run(TOKENS))}


@pytest.mark.parametrize("backward", [False, True])
def test_no_map_of_16384_tokens_is_ever_made(backward: bool) -> None:
    peak = peak_memory(f"{__name__}:long_calls", {"backward": backward}, "cpu")["ours"]
    attention_map = 4 * TOKENS**2  # 1 GB
    assert peak < attention_map / 20, f"{peak >> 20} MB"


def test_a_nan_in_a_query_reaches_the_columns_that_it_sees_and_no_other() -> None:
    call = received_call(packed=True, batch=3, causal=True, reduce_heads=None)
    bounds = call["cu_seqlens"].tolist()
    row = bounds[-2] + 1  # the second row of the last sequence
    call["query"][row, 1] = torch.nan
    result = vr_kernels.attention_received(**call, backend="cpu")
    seen = torch.zeros_like(result, dtype=torch.bool)
    seen[1, bounds[-2] : row + 1] = True
    assert torch.equal(result.isnan(), seen)


@backends
def test_large_scores_neither_overflow_nor_vanish(backend: str) -> None:
    query = torch.tensor([1e4, -1e4, 1e4]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    result = vr_kernels.attention_received(query, query, backend=backend)
    torch.testing.assert_close(result, torch.tensor([[1 / 3, 1 / 3, 1 / 3]]))


@backends
@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (2, 1)])
def test_the_smallest_calls(batch: int, tokens: int, backend: str) -> None:
    call = received_call(batch=batch, tokens=tokens)
    results = evaluate(ATTENTION_RECEIVED.run(backend), call, [torch.ones(batch, tokens)])
    assert torch.equal(results["output 0"], torch.ones(batch, tokens))
    torch.testing.assert_close(results["d query"], torch.zeros_like(call["query"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_nothing(dtype: torch.dtype) -> None:
    call = received_call(dtype=dtype, lse=True)
    cotangents = random_cotangents(ATTENTION_RECEIVED.run("cpu"), call)
    expected = evaluate(ATTENTION_RECEIVED.run("cpu"), call, cotangents)
    strided = {name: torch.stack([value, value], 1)[:, 1].mT.contiguous().mT for name, value in call.items()}
    for name, result in evaluate(ATTENTION_RECEIVED.run("cpu"), strided, cotangents).items():
        assert torch.equal(result, expected[name]), name


@pytest.fixture
def _restored_isa() -> Iterator[None]:
    before = _C.isa()
    yield
    _C.set_isa(before)


@pytest.mark.usefixtures("_restored_isa", "small_blocks")
@pytest.mark.parametrize("isa", _C.cpu_features()["available"])
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("tokens", [1, 15, 33, 300])
def test_every_instruction_set_obeys_the_error_rule(tokens: int, lse: bool, isa: str) -> None:
    _C.set_isa(isa)
    subject = ATTENTION_RECEIVED
    assert_obeys_the_error_rule(
        subject.run("cpu"),
        subject.run("reference"),
        subject.run("reference"),
        lambda seed: subject.call(seed, tokens=tokens, lse=lse, causal=True),
        norms=["root_mean_square"],
        skip=["d query", "d key"] if tokens == 1 and not lse else [],  # exactly zero
    )


ones = torch.ones
REFUSED: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "query is None; it must be a torch.Tensor": (TypeError, {"query": None}),
    "query has shape (7, 4, 8); it must be (B, N, h, d)": (ValueError, {"query": ones(7, 4, 8)}),
    "query has shape (2, 7, 4, 8); it must be (T, h, d) with cu_seqlens": (
        ValueError,
        {"cu_seqlens": torch.tensor([0, 7])},
    ),
    "key has shape (2, 8, 2, 8); it must be (2, 7, h_kv, 8)": (ValueError, {"key": ones(2, 8, 2, 8)}),
    "key has 3 heads, query has 4; the key's must divide the query's": (ValueError, {"key": ones(2, 7, 3, 8)}),
    "key has width 9, query has 8; they must be equal": (ValueError, {"key": ones(2, 7, 2, 9)}),
    "lse has shape (2, 4, 7); it must be (2, 7, 4)": (ValueError, {"lse": ones(2, 4, 7)}),
    "lse is torch.float64; it must be torch.float32": (TypeError, {"lse": ones(2, 7, 4).double()}),
    "causal is 1; it must be a bool": (TypeError, {"causal": 1}),
    'reduce_heads is \'min\'; it must be "mean" or "sum" or "max" or None': (ValueError, {"reduce_heads": "min"}),
    "scale is True; it must be a number or None": (TypeError, {"scale": True}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_in_words(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativePass, "forward", lambda *_: pytest.fail("a kernel was called with bad input"))
    exception, fault = REFUSED[words]
    with pytest.raises(exception) as caught:
        vr_kernels.attention_received(**(received_call() | fault))
    assert str(caught.value).startswith(f"attention_received: {words}")


@backends
def test_bounds_that_are_not_the_tokens_are_refused(backend: str) -> None:
    call = received_call(packed=True) | {"cu_seqlens": torch.tensor([0, 7, 15])}
    with pytest.raises(ValueError, match=r"attention_received: cu_seqlens runs from 0 to 15; .* from 0 to 14"):
        vr_kernels.attention_received(**call, backend=backend)


def test_float64_is_computed_by_blocks_without_a_map() -> None:
    call = {name: value.double() for name, value in received_call().items()}
    assert vr_kernels.explain(vr_kernels.attention_received, **call).chosen == "blocked"


@backends
@pytest.mark.parametrize("zero", ["query", "key"])
def test_equal_weights_are_summed_to_their_last_digit(backend: str, zero: str) -> None:
    """Of a projection that starts at zero: every sum of the same numbers is rounded to the same side."""
    call = {"query": torch.randn(1, 1100, 2, 16), "key": torch.randn(1, 1100, 2, 16)}
    call[zero] = torch.zeros(1, 1100, 2, 16)
    received = vr_kernels.attention_received(**call, backend=backend).double()
    exact = vr_kernels.attention_received(**{name: x.double() for name, x in call.items()}, backend="reference")
    assert ((received - exact) / exact).abs().max() < 2**-22


@backends
def test_an_integer_scale_is_a_number_as_any_other(backend: str) -> None:
    call = received_call()
    for scale in (2, 10**30):
        received = vr_kernels.attention_received(**call, scale=scale, backend=backend)
        assert torch.equal(received, vr_kernels.attention_received(**call, scale=float(scale), backend=backend))
