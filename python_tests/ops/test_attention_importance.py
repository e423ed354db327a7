"""``attention_importance`` beyond the coverage matrix: edges, layouts, NaN, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import DTYPES, Call
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._importance import importance_call
from python_tests._operators import ATTENTION_IMPORTANCE, backends_of
from vr_kernels import _C
from vr_kernels.ops.attention_importance.native import NativeRows

BACKENDS = [*backends_of(ATTENTION_IMPORTANCE), "reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
def test_one_row_is_that_row_of_the_attention_map(backend: str) -> None:
    query, key = torch.randn(2, 4, 50, 16), torch.randn(2, 4, 50, 16)  # (B, h, N, d)
    attention = (query @ key.mT / 4).softmax(-1)
    rows, keys = query.transpose(1, 2), key.transpose(1, 2)
    result = vr_kernels.attention_importance(rows[:, :1], keys, backend=backend)
    torch.testing.assert_close(result, attention[:, :, 0].mean(1))
    last = vr_kernels.attention_importance(rows[:, -3:], keys, reduce_heads="sum", reduce_rows="max", backend=backend)
    torch.testing.assert_close(last, attention[:, :, -3:].sum(1).amax(1))


@backends
def test_heads_are_reduced_before_rows(backend: str) -> None:
    call = importance_call(reduce_heads=None, normalize="none", rows=1)
    rows = [
        vr_kernels.attention_importance(**(call | {"query_rows": call["query_rows"] * s}), backend=backend)
        for s in (1, -2)
    ]
    both = torch.cat([call["query_rows"], -2 * call["query_rows"]], 1)
    result = vr_kernels.attention_importance(
        both, call["key"], normalize="none", reduce_heads="mean", reduce_rows="max", backend=backend
    )
    torch.testing.assert_close(result, torch.stack([row.mean(1) for row in rows]).amax(0))


@backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", ["softmax", "none"])
def test_hidden_keys_are_never_read(normalize: str, dtype: torch.dtype, backend: str) -> None:
    call = importance_call(dtype=dtype, mask=True, normalize=normalize)
    cotangents = random_cotangents(ATTENTION_IMPORTANCE.run(backend), call)
    expected = evaluate(ATTENTION_IMPORTANCE.run(backend), call, cotangents)
    call["key"] = call["key"].masked_fill(~call["key_mask"][..., None, None], torch.nan)
    for name, result in evaluate(ATTENTION_IMPORTANCE.run(backend), call, cotangents).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)
    assert torch.equal(expected["output 0"][0], torch.zeros_like(expected["output 0"][0]))


@backends
def test_a_nan_stays_in_its_own_row(backend: str) -> None:
    call = importance_call(reduce_heads=None, rows=1)
    call["query_rows"][1, 0, 2, 3] = torch.nan
    result = vr_kernels.attention_importance(**call, backend=backend)
    assert result[1, 2].isnan().all()
    assert result.isnan().sum() == result.shape[-1]


@backends
def test_large_scores_neither_overflow_nor_vanish(backend: str) -> None:
    query, key = torch.full((1, 1, 1, 4), 1e4), torch.tensor([1e4, -1e4, 1e4, 0.0]).view(1, 4, 1, 1).expand(1, 4, 1, 4)
    result = vr_kernels.attention_importance(query, key, backend=backend)
    assert torch.equal(result, torch.tensor([[0.5, 0.0, 0.5, 0.0]]))


@backends
@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (0, 0)])
def test_empty_calls_give_empty_results(batch: int, tokens: int, backend: str) -> None:
    call = importance_call(batch=batch, tokens=tokens)
    results = evaluate(ATTENTION_IMPORTANCE.run(backend), call, [torch.ones(batch, tokens)])
    assert results["output 0"].shape == (batch, tokens)
    assert results["d query_rows"].shape == call["query_rows"].shape
    assert not results["d query_rows"].any()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads first": lambda key: key.transpose(1, 2).contiguous().transpose(1, 2),
    "channels strided": lambda key: torch.stack([key, key], -1)[..., 0],
    "without its first row": lambda key: torch.cat([torch.full_like(key[:, :1], torch.nan), key], 1)[:, 1:],
    "part of a packed projection": lambda key: torch.stack([key, key, key], 2)[:, :, 1],
    "expanded": lambda key: key[:1].clone().expand(key.shape),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_of_any_strides_are_read_where_they_are(
    layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = importance_call(dtype=dtype, width=24)
    key = LAYOUTS[layout](call["key"])
    expected = vr_kernels.attention_importance(**(call | {"key": key.contiguous()}), backend="cpu")
    assert key.is_contiguous() is False
    read: list[int] = []
    native = _C.attention_importance
    monkeypatch.setattr(_C, "attention_importance", lambda **given: (read.append(given["key"]), native(**given)))
    result = vr_kernels.attention_importance(**(call | {"key": key}), backend="cpu")
    torch.testing.assert_close(result, expected)
    assert read == [key.data_ptr()]


@pytest.fixture
def _restored_isa() -> Iterator[None]:
    before = _C.isa()
    yield
    _C.set_isa(before)


@pytest.mark.usefixtures("_restored_isa")
@pytest.mark.parametrize("isa", _C.cpu_features()["available"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 5, 8, 16, 31, 72, 129])
def test_any_width_on_any_instruction_set_obeys_the_error_rule(width: int, dtype: torch.dtype, isa: str) -> None:
    _C.set_isa(isa)
    subject = ATTENTION_IMPORTANCE
    assert_obeys_the_error_rule(
        subject.run("cpu"),
        subject.run("reference"),
        subject.run("reference"),
        lambda seed: subject.call(seed, dtype=dtype, width=width, tokens=37, reduce_heads=None),
        draws=4,
    )


@pytest.mark.parametrize("reduce_heads", ["mean", "sum", "max", None])
@pytest.mark.parametrize("reduce_rows", ["mean", "sum", "max"])
def test_every_reduction_is_differentiated(reduce_heads: str | None, reduce_rows: str) -> None:
    call = importance_call(tokens=5, rows=2, width=3, reduce_heads=reduce_heads, reduce_rows=reduce_rows)
    call = {name: value.double() if isinstance(value, Tensor) else value for name, value in call.items()}
    query, key = call.pop("query_rows").requires_grad_(), call.pop("key").requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: vr_kernels.attention_importance(q, k, **call), (query, key))


ones = torch.ones
REFUSED: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "query_rows is a list; it must be a torch.Tensor": (TypeError, {"query_rows": [1.0]}),
    "query_rows is torch.int64; it must be float32": (TypeError, {"query_rows": ones(2, 3, 4, 8).long()}),
    "query_rows has shape (2, 4, 8); it must be (B, R, h, d)": (ValueError, {"query_rows": ones(2, 4, 8)}),
    "query_rows has 0 rows; it must have at least 1": (ValueError, {"query_rows": ones(2, 0, 4, 8)}),
    "query_rows has 0 heads of width 8; both must be at least 1": (ValueError, {"query_rows": ones(2, 3, 0, 8)}),
    "key is torch.float16, query_rows is torch.float32; they must share": (TypeError, {"key": ones(2, 7, 2, 8).half()}),
    "key is on meta, query_rows is on cpu": (ValueError, {"key": ones(2, 7, 2, 8, device="meta")}),
    "key has shape (7, 2, 8); it must be (B, N, h_kv, d)": (ValueError, {"key": ones(7, 2, 8)}),
    "key has width 9, query_rows has 8; they must be equal": (ValueError, {"key": ones(2, 7, 2, 9)}),
    "key has 3 heads, query_rows has 4; the key's must divide": (ValueError, {"key": ones(2, 7, 3, 8)}),
    "key has batch 3, query_rows has 2; they must be equal": (ValueError, {"key": ones(3, 7, 2, 8)}),
    "key_mask is torch.float32; it must be torch.bool": (TypeError, {"key_mask": ones(2, 7)}),
    "key_mask has shape (7,); it must be (2, 7)": (ValueError, {"key_mask": ones(7, dtype=torch.bool)}),
    'normalize is \'relu\'; it must be "softmax" or "none"': (ValueError, {"normalize": "relu"}),
    'reduce_heads is \'min\'; it must be "mean" or "sum" or "max" or None': (ValueError, {"reduce_heads": "min"}),
    'reduce_rows is None; it must be "mean" or "sum" or "max"': (ValueError, {"reduce_rows": None}),
    "scale is 'large'; it must be a number or None": (TypeError, {"scale": "large"}),
    "key has shape (2, 7, 2, 8); it must be (T, h_kv, d) with cu_seqlens": (
        ValueError,
        {"cu_seqlens": torch.tensor([0, 3, 7])},
    ),
    "backend is 'cuda9'; it must be None or one of cpu": (ValueError, {"backend": "cuda9"}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_in_words(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeRows, "forward", lambda *_: pytest.fail("a kernel was called with bad input"))
    exception, fault = REFUSED[words]
    with pytest.raises(exception) as caught:
        vr_kernels.attention_importance(**(importance_call() | fault))
    assert str(caught.value).startswith(f"attention_importance: {words}")


BOUNDS: dict[str, Tensor] = {
    "cu_seqlens has shape (2,), query_rows has 2 sequences; it must be (3,)": torch.tensor([0, 14]),
    "cu_seqlens has shape (1, 3); it must be (S + 1,)": torch.tensor([[0, 7, 14]]),
    "cu_seqlens runs from 0 to 13; it must run from 0 to 14, the tokens": torch.tensor([0, 7, 13]),
    "cu_seqlens runs from 1 to 14; it must run from 0 to 14": torch.tensor([1, 7, 14]),
    "cu_seqlens[2] is 14, cu_seqlens[1] is 15; it must not decrease": torch.tensor([0, 15, 14]),
}


@backends
@pytest.mark.parametrize("words", BOUNDS)
def test_bad_bounds_are_refused_in_words(words: str, backend: str) -> None:
    call: Call = importance_call(packed=True)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        vr_kernels.attention_importance(**(call | {"cu_seqlens": BOUNDS[words]}), backend=backend)
    assert str(caught.value).startswith(f"attention_importance: {words}")


def test_a_packed_call_takes_no_mask_and_integers_alone() -> None:
    call = importance_call(packed=True)
    with pytest.raises(ValueError, match=r"key_mask is given with cu_seqlens"):
        vr_kernels.attention_importance(**call, key_mask=ones(14, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"cu_seqlens is torch.float32; it must be int32 or int64"):
        vr_kernels.attention_importance(**(call | {"cu_seqlens": call["cu_seqlens"].float()}))
    int32 = call | {"cu_seqlens": call["cu_seqlens"].int()}
    assert torch.equal(vr_kernels.attention_importance(**int32), vr_kernels.attention_importance(**call))
