"""Bad input of the operators on token rows: a sentence each, before any kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests._cases import Call
from python_tests._token_cases import gather_call, scatter_call, text_guide_call
from python_tests.ops.test_bidirectional_attention import attention_call
from vr_kernels.ops import _native, _tokens
from vr_kernels.ops._token_native import NativeTokens
from vr_kernels.ops._tokens import check_token_rows

ones = torch.ones
Refusals = dict[str, Callable[[Call], Call]]

STREAM: Refusals = {
    "hidden_states has shape (11, 7); it must be (B, T, D)": lambda c: {"hidden_states": c["hidden_states"][0]},
    "hidden_states has shape (3, 11, 0); its width must be at least 1":
        lambda c: {"hidden_states": c["hidden_states"][..., :0]},
    "hidden_states is torch.int64; it must be float32, bfloat16, float16 or float64":
        lambda c: {"hidden_states": c["hidden_states"].long()},
    "hidden_states is None; it must be a torch.Tensor": lambda c: {"hidden_states": None},
    "backend is 'cuda9'; it must be None or one of cpu": lambda c: {"backend": "cuda9"},
}  # fmt: skip
MASK: Refusals = {
    "text_mask has shape (3, 10); it must be (3, 11)": lambda c: {"text_mask": c["text_mask"][:, 1:]},
    "text_mask is torch.int64; it must be torch.bool": lambda c: {"text_mask": c["text_mask"].long()},
    "text_mask is on meta, hidden_states is on cpu": lambda c: {"text_mask": c["text_mask"].to("meta")},
}
GUIDE: Refusals = MASK | {"text_mask is None; it must be a torch.Tensor": lambda c: {"text_mask": None}}
ROWS: Refusals = {
    "token_rows has shape (12,); it must be (I, N)": lambda c: {"token_rows": c["token_rows"].flatten()},
    "token_rows is torch.float32; it must be int32 or int64": lambda c: {"token_rows": c["token_rows"].float()},
    "token_rows is None; it must be a torch.Tensor": lambda c: {"token_rows": None},
    "token_rows is on meta, hidden_states is on cpu": lambda c: {"token_rows": c["token_rows"].to("meta")},
    "token_rows[1, 0] is 33; it must be -1 (padding) or a row of hidden_states in [0, 33)":
        lambda c: {"token_rows": torch.tensor([[0, 1], [33, 2], [-1, -1]]), "update": ones(3, 2, 7)},
    "token_rows[0, 1] is -2; it must be -1 (padding) or a row of hidden_states in [0, 33)":
        lambda c: {"token_rows": torch.tensor([[0, -2], [3, 2], [-1, -1]]), "update": ones(3, 2, 7)},
    "token_rows names row 5 more than once; a row may stand once":
        lambda c: {"token_rows": torch.tensor([[0, 5], [5, -1], [-1, -1]]), "update": ones(3, 2, 7)},
}  # fmt: skip
GATHER: Refusals = {
    "norm_weight has shape (8,); it must be (7,)": lambda c: {"norm_weight": ones(8)},
    "norm_weight is torch.float16; it must be torch.float32 (the hidden_states's) or torch.float32":
        lambda c: {"norm_weight": ones(7).half()},
    "norm_eps is 'small'; it must be a number": lambda c: {"norm_eps": "small"},
    "norm_eps is -100; it must be at least 0": lambda c: {"norm_eps": -100},
    "image_sample has shape (2,); it must be (3,), a sample an image":
        lambda c: {"image_sample": torch.zeros(2, dtype=torch.int64)},
    "image_sample is torch.bool; it must be int32 or int64":
        lambda c: {"image_sample": torch.zeros(3, dtype=torch.bool)},
    "image_sample[2] is 3; it must be a sample in [0, 3)": lambda c: {"image_sample": torch.tensor([0, 1, 3])},
    "image_sample[0] is -1; it must be a sample in [0, 3)": lambda c: {"image_sample": torch.tensor([-1, 1, 0])},
    "token_rows has 2 images, hidden_states 3 samples, and image_sample is None; give the sample of each image":
        lambda c: {"token_rows": c["token_rows"][:2]},
}  # fmt: skip
SCATTER: Refusals = {
    "update has shape (3, 3, 7); it must be (I, N, D) = (3, 4, 7)": lambda c: {"update": c["update"][:, 1:]},
    "update is torch.bfloat16, hidden_states is torch.float32; they must share one dtype":
        lambda c: {"update": c["update"].bfloat16()},
    "update is None; it must be a torch.Tensor": lambda c: {"update": None},
}  # fmt: skip
ATTENTION: Refusals = {
    "query has shape (4, 8); it must be (T, h, d) or (B, N, h, d)": lambda c: {"query": c["query"][0, 0]},
    "query has 0 heads of width 8; both must be at least 1": lambda c: {"query": c["query"][..., :0, :]},
    "query is torch.int32; it must be float32": lambda c: {"query": c["query"].int()},
    "key has shape (6, 2, 8); it must be (B, M, h_kv, d)": lambda c: {"key": c["key"][0]},
    "key has batch 2, query has 3; they must be equal": lambda c: {"key": c["key"][1:]},
    "key has width 7, query has 8; they must be equal": lambda c: {"key": c["key"][..., 1:]},
    "key has 3 heads, query has 4; the key's must divide the query's": lambda c: {"key": ones(3, 6, 3, 8)},
    "key is torch.float16, query is torch.float32; they must share one dtype": lambda c: {"key": c["key"].half()},
    "value has shape (3, 5, 2, 8), key has (3, 6, 2, 8); they must be equal": lambda c: {"value": c["value"][:, 1:]},
    "cu_seqlens is given, and query has the padded shape (3, 6, 4, 8); give (T, h, d)":
        lambda c: {"cu_seqlens": torch.tensor([0, 6])},
    "guide_key and guide_value must be given together": lambda c: {"guide_key": ones(3, 2, 8)},
    "guide_key has shape (2, 2, 8); it must be (3, 2, 8)":
        lambda c: {"guide_key": ones(2, 2, 8), "guide_value": ones(3, 2, 8)},
    "guide_value has shape (3, 4, 8); it must be (3, 2, 8)":
        lambda c: {"guide_key": ones(3, 2, 8), "guide_value": ones(3, 4, 8)},
    "guide_mask is given and guide_key is None; there is no guide to mask":
        lambda c: {"guide_mask": ones(3, dtype=torch.bool)},
    "key_mask has shape (3, 5); it must be (3, 6)": lambda c: {"key_mask": ones(3, 5, dtype=torch.bool)},
    "key_mask is torch.float32; it must be torch.bool, True where present": lambda c: {"key_mask": ones(3, 6)},
    "scale is 'large'; it must be a number or None": lambda c: {"scale": "large"},
    "backend is 'cpu'; it must be None or one of sdpa, reference": lambda c: {"backend": "cpu"},
}  # fmt: skip
PACKED: Refusals = {
    "query has the packed shape (11, 4, 8), and cu_seqlens is None; give (S + 1,)": lambda c: {"cu_seqlens": None},
    "cu_seqlens has shape (1, 5); it must be (S + 1,)": lambda c: {"cu_seqlens": c["cu_seqlens"][None]},
    "cu_seqlens has shape (0,); it must be (S + 1,)": lambda c: {"cu_seqlens": c["cu_seqlens"][:0]},
    "cu_seqlens is torch.float32; it must be int32 or int64": lambda c: {"cu_seqlens": c["cu_seqlens"].float()},
    "cu_seqlens runs from 0 to 12; it must run from 0 to 11, the tokens":
        lambda c: {"cu_seqlens": torch.tensor([0, 12])},
    "cu_seqlens runs from 1 to 11; it must run from 0 to 11, the tokens":
        lambda c: {"cu_seqlens": torch.tensor([1, 11])},
    "cu_seqlens[2] is 4, cu_seqlens[1] is 5; it must not decrease":
        lambda c: {"cu_seqlens": torch.tensor([0, 5, 4, 11])},
    "key has rows 10, query has 11; they must be equal": lambda c: {"key": c["key"][1:]},
    "key_mask is given with packed sequences; it belongs to the padded form":
        lambda c: {"key_mask": ones(11, dtype=torch.bool)},
}  # fmt: skip


def packed_call() -> Call:
    return attention_call(packed=True)


TABLE = [
    pytest.param(function, call, words, fault, id=f"{function.__name__}: {words}")
    for function, call, *tables in (
        (vr_kernels.text_guide_token, text_guide_call, STREAM, GUIDE),
        (vr_kernels.gather_tokens, lambda: gather_call(guide=True), STREAM, MASK, ROWS, GATHER),
        (vr_kernels.scatter_add_tokens, scatter_call, STREAM, ROWS, SCATTER),
        (vr_kernels.bidirectional_attention, attention_call, ATTENTION),
        (vr_kernels.bidirectional_attention, packed_call, PACKED),
    )
    for words, fault in {k: v for table in tables for k, v in table.items()}.items()
]


@pytest.fixture(autouse=True)
def _no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a kernel was called with bad input")

    for method in ("text_guide", "gather", "gather_backward", "scatter_add"):
        monkeypatch.setattr(NativeTokens, method, refuse)


@pytest.mark.parametrize(("function", "call", "words", "fault"), TABLE)
def test_bad_input_is_refused_in_words(
    function: Callable[..., Any], call: Callable[[], Call], words: str, fault: Callable[[Call], Call]
) -> None:
    good = call()
    changed = {k: v for k, v in fault(good).items() if k in good or k not in ("update",)}
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**(good | changed))
    assert str(caught.value).startswith(f"{function.__name__}: {words}")


@pytest.mark.parametrize("operator", ["gather_tokens", "scatter_add_tokens"])
def test_the_definition_refuses_bad_rows_too(operator: str) -> None:
    call = gather_call() if operator == "gather_tokens" else scatter_call()
    for row, words in ((33, "it must be -1"), (int(call["token_rows"][0, 1]), "more than once")):
        bad = call["token_rows"].clone()
        bad[0, 0] = row
        with pytest.raises(ValueError, match=f"^{operator}: token_rows.*{words}"):
            getattr(vr_kernels, operator)(**(call | {"token_rows": bad}), backend="reference")


@pytest.mark.parametrize("form", ["int32", "strided", "no native module"])
def test_bad_rows_are_refused_in_every_form_they_come_in(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "no native module":
        monkeypatch.setattr(_tokens, "index_fits", lambda *arguments, **options: False)
    for numbers, words in (([0, 33], "is 33; it must"), ([-2, 0], "is -2; it must"), ([32, 32], "names row 32 more")):
        rows = torch.tensor([numbers], dtype=torch.int32 if form == "int32" else torch.int64)
        rows = torch.stack([rows, rows], -1)[..., 0] if form == "strided" else rows
        with pytest.raises(ValueError, match=words):
            check_token_rows("operator", rows, 33)
    for numbers in ([0, 32], [-1, -1], [32, -1]):
        check_token_rows("operator", torch.tensor([numbers]), 33)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_an_index_is_looked_at_to_its_last_number(dtype: torch.dtype) -> None:
    index = torch.arange(1001, dtype=dtype)
    assert _native.index_fits(index, 0, 1001, distinct=True)
    assert not _native.index_fits(index, 0, 1000)
    assert not _native.index_fits(index, 1, 1001)
    index[-1] = 999
    assert _native.index_fits(index, 0, 1001)
    assert not _native.index_fits(index, 0, 1001, distinct=True)
    assert _native.index_fits(index[:0], 0, 0, distinct=True)
    assert _native.index_fits(torch.full((5,), -1, dtype=dtype), -1, 0, distinct=True), "padding may stand anywhere"


def test_a_compiled_graph_s_rows_are_checked_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    call = scatter_call()
    call["token_rows"][0, 0] = 33
    compiled = torch.compile(vr_kernels.scatter_add_tokens, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"token_rows\[0, 0\] is 33"):
        compiled(**call)
