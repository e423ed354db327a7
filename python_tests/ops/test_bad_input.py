"""Every kind of bad input gets its own sentence: the operator, the argument, what it got, what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import Call
from python_tests._operators import (
    LOCAL_ATTENTION,
    LOCAL_CROSS_ATTENTION,
    WINDOWED,
    Subject,
    over_backends,
    over_windowed,
)
from vr_kernels.ops._window_native import NativeKernel

ones = torch.ones


def level(i: int, change: Callable[[Tensor], Any]) -> Callable[[Call], Call]:
    """A fault in one feature level."""
    return lambda c: {"features": [change(x) if i == j else x for j, x in enumerate(c["features"])]}


# What the message says after "operator: ", and the fault: what replaces some of a good call's arguments.
Refusals = dict[str, Callable[[Call], Call]]

BOTH_VALUES: Refusals = {
    "window_index is given, and query has the grid form's leading shape (2, 2, 3); a window_index needs":
        lambda c: {"window_index": torch.zeros(12, 6, dtype=torch.int64)},
    "saliency is on meta, query is on cpu; all tensors must share one device":
        lambda c: {"saliency": ones(2, 4, 9, device="meta")},
    "saliency has shape (2, 4, 8); it must be (2, 4, 9)": lambda c: {"saliency": ones(2, 4, 8)},
    "attention_bias has shape (4, 5); it must be (4, 6) or (12, 4, 6)": lambda c: {"attention_bias": ones(4, 5)},
    "backend is 'cuda9'; it must be None or one of cpu": lambda c: {"backend": "cuda9"},
    "backend='triton' cannot run this call: the Triton kernels take CUDA tensors": lambda c: {"backend": "triton"},
}  # fmt: skip
BOTH_TYPES: Refusals = {
    "query is a ndarray; it must be a torch.Tensor": lambda c: {"query": c["query"].numpy()},
    "query is None; it must be a torch.Tensor": lambda c: {"query": None},
    "query is torch.int32; it must be float32, bfloat16, float16 or float64": lambda c: {"query": c["query"].int()},
    "saliency is torch.float16; it must be torch.float32": lambda c: {"saliency": ones(2, 4, 9).half()},
    "saliency is a float; it must be a torch.Tensor": lambda c: {"saliency": 0.5},
    "attention_bias is torch.int64; it must be torch.float32": lambda c: {"attention_bias": ones(4, 6).long()},
    "scale is 'large'; it must be a number or None": lambda c: {"scale": "large"},
}
ATTENTION_VALUES: Refusals = {
    "query has shape (2, 3, 4, 8); it must be (N, h, d) or (B, n_h, n_w, h, d)": lambda c: {"query": c["query"][0]},
    "query has 0 heads of width 8; both must be at least 1": lambda c: {"query": c["query"][..., :0, :]},
    "query has 4 heads of width 0; both must be at least 1": lambda c: {"query": c["query"][..., :0]},
    "key is on meta, query is on cpu; all tensors must share one device": lambda c: {"key": c["key"].to("meta")},
    "key has shape (4, 9, 2, 8); it must be (B, H, W, h_kv, d)": lambda c: {"key": c["key"][0]},
    "key has width 7, query has 8; they must be equal": lambda c: {"key": c["key"][..., :-1]},
    "key has batch 1, query has 2; they must be equal": lambda c: {"key": c["key"][:1]},
    "key has 3 heads, query has 4; the key's must divide the query's": lambda c: {"key": ones(2, 4, 9, 3, 8)},
    "key has 0 heads, query has 4; the key's must divide the query's": lambda c: {"key": ones(2, 4, 9, 0, 8)},
    "key has height 3, query has 2 windows along it; the grid form needs a whole number of rows a window":
        lambda c: {"key": c["key"][:, :3]},
    "key has width 8, query has 3 windows along it; the grid form needs a whole number of rows a window":
        lambda c: {"key": c["key"][:, :, :8]},
    "key is an empty sequence; it must hold at least one level": lambda c: {"key": []},
    "key[1] has shape (2, 4, 9, 0); its width, the last size, must be at least 1":
        lambda c: {"key": [ones(2, 4, 9, 8), ones(2, 4, 9, 0)]},
    "key[1] has grid (2, 2, 9), key[0] has (2, 4, 9); all levels must share one grid":
        lambda c: {"key": [ones(2, 4, 9, 3), ones(2, 2, 9, 5)]},
    "value has shape (2, 4, 9, 2, 8); it must be (2, 4, 9, 1) and a width":
        lambda c: {"key": [ones(2, 4, 9, 8)], "value": ones(2, 4, 9, 2, 8)},
    "value has shape (2, 4, 8, 2, 5); it must be (2, 4, 9, 2) and a width": lambda c: {"value": ones(2, 4, 8, 2, 5)},
    "value has shape (2, 4, 9, 2, 0); it must be (2, 4, 9, 2) and a width of at least 1":
        lambda c: {"value": ones(2, 4, 9, 2, 0)},
}  # fmt: skip
ATTENTION_TYPES: Refusals = {
    "key is torch.float16, query is torch.float32; they must share one dtype": lambda c: {"key": c["key"].half()},
    "key[1] is a ndarray; it must be a torch.Tensor": lambda c: {"key": [ones(2, 4, 9, 3), np.ones((2, 4, 9, 5))]},
    "value is torch.float16, query is torch.float32; they must share one dtype":
        lambda c: {"value": ones(2, 4, 9, 2, 5).half()},
    "value is a list; it must be a torch.Tensor": lambda c: {"value": [ones(2, 4, 9, 2, 5)]},
}  # fmt: skip
CROSS_VALUES: Refusals = {
    "query has shape (2, 3, 32); it must be (N, E) or (B, n_h, n_w, E)": lambda c: {"query": c["query"][0]},
    "num_heads is 5, query has width 32; it must be an int, a positive divisor of it": lambda c: {"num_heads": 5},
    "num_heads is 0, query has width 32; it must be an int, a positive divisor of it": lambda c: {"num_heads": 0},
    "num_heads is 4.0, query has width 32; it must be an int, a positive divisor": lambda c: {"num_heads": 4.0},
    "num_heads is '4', query has width 32; it must be an int, a positive divisor": lambda c: {"num_heads": "4"},
    "norm_eps is -1.0; it must be at least 0": lambda c: {"norm_weight": ones(48), "norm_eps": -1.0},
    "norm_eps is nan; it must be finite": lambda c: {"norm_weight": ones(48), "norm_eps": math.nan},
    "scale is inf; it must be finite": lambda c: {"scale": math.inf},
    "features is an empty sequence; it must hold at least one level": lambda c: {"features": []},
    "features[1] has shape (2, 4, 9, 0); its width, the last size, must be at least 1":
        level(1, lambda x: x[..., :0]),
    "features[1] has grid (2, 2, 9), features[0] has (2, 4, 9); all levels must share one grid":
        level(1, lambda x: x[:, :2]),
    "features[0] is on meta, query is on cpu; all tensors must share one device": level(0, lambda x: x.to("meta")),
    "features has shape (4, 9, 16); it must be (B, H, W, D) a level":
        lambda c: {"features": [x[0] for x in c["features"]]},
    "features has batch 1, query has 2; they must be equal": lambda c: {"features": [x[:1] for x in c["features"]]},
    "features has height 3, query has 2 windows along it; the grid form needs a whole number":
        lambda c: {"features": [x[:, :3] for x in c["features"]]},
    "features has width 8, query has 3 windows along it; the grid form needs a whole number":
        lambda c: {"features": [x[:, :, :8] for x in c["features"]]},
    "key_weight has shape (48, 32); it must be (E, C) = (32, 48)": lambda c: {"key_weight": c["key_weight"].T},
    "value_weight has shape (32, 47); it must be (E, C) = (32, 48)": lambda c: {"value_weight": ones(32, 47)},
    "key_bias has shape (31,); it must be (32,)": lambda c: {"key_bias": ones(31)},
    "value_bias has shape (2, 32); it must be (32,)": lambda c: {"value_bias": ones(2, 32)},
    "norm_weight has shape (32,); it must be (48,)": lambda c: {"norm_weight": ones(32)},
    "norm_bias is given and norm_weight is None; a LayerNorm needs norm_weight": lambda c: {"norm_bias": ones(48)},
    "norm_bias is on meta, query is on cpu; all tensors must share one device":
        lambda c: {"norm_weight": ones(48), "norm_bias": ones(48, device="meta")},
    "norm_groups is 'levels'; it must be \"all\" or \"level\"": lambda c: {"norm_groups": "levels"},
    "saliency_on is 'values'; it must be \"value\" or \"feature\"": lambda c: {"saliency_on": "values"},
}  # fmt: skip
CROSS_TYPES: Refusals = {
    "features is None; it must be a torch.Tensor": lambda c: {"features": None},
    "features is a int; it must be a torch.Tensor": lambda c: {"features": 3},
    "features[1] is None; it must be a torch.Tensor": level(1, lambda x: None),
    "features[2] is torch.float16, query is torch.float32; they must share one dtype": level(2, Tensor.half),
    "key_weight is None; it must be a torch.Tensor": lambda c: {"key_weight": None},
    "value_weight is torch.float64, query is torch.float32; they must share one dtype":
        lambda c: {"value_weight": c["value_weight"].double()},
    "norm_eps is 'small'; it must be a number": lambda c: {"norm_weight": ones(48), "norm_eps": "small"},
}  # fmt: skip
INDEX_VALUES: Refusals = {
    "query has the indexed form's leading shape (12,), and window_index is None; give (N, K)":
        lambda c: {"window_index": None},
    "window_index has shape (72,); it must be (N, K) with N = 12":
        lambda c: {"window_index": c["window_index"].flatten()},
    "window_index has shape (11, 6); it must be (N, K) with N = 12": lambda c: {"window_index": c["window_index"][1:]},
    "window_index is on meta, query is on cpu": lambda c: {"window_index": c["window_index"].to("meta")},
}  # fmt: skip
INDEX_TYPES: Refusals = {
    "window_index is torch.float32; it must be int32 or int64": lambda c: {"window_index": c["window_index"].float()},
    "window_index is torch.uint8; it must be int32 or int64": lambda c: {"window_index": c["window_index"].byte()},
    "window_index is a list; it must be a torch.Tensor": lambda c: {"window_index": c["window_index"].tolist()},
}


def table(values: Refusals, types: Refusals, subjects: list[Subject] = WINDOWED, indexed: bool = False) -> list[Any]:
    rows = [(ValueError, *row) for row in values.items()] + [(TypeError, *row) for row in types.items()]
    return [
        pytest.param(subject, indexed, exception, words, fault, id=f"{subject.name}: {words}")
        for subject in subjects
        for exception, words, fault in rows
    ]


@pytest.fixture(autouse=True)
def _no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a kernel was called with bad input")

    for method in ("forward", "backward", "feature_gradient"):
        monkeypatch.setattr(NativeKernel, method, refuse)


@pytest.mark.parametrize(
    ("subject", "indexed", "exception", "words", "fault"),
    [
        *table(BOTH_VALUES, BOTH_TYPES),
        *table(ATTENTION_VALUES, ATTENTION_TYPES, [LOCAL_ATTENTION]),
        *table(CROSS_VALUES, CROSS_TYPES, [LOCAL_CROSS_ATTENTION]),
        *table(INDEX_VALUES, INDEX_TYPES, indexed=True),
    ],
)
def test_bad_input_is_refused_in_words(
    subject: Subject, indexed: bool, exception: type[Exception], words: str, fault: Callable[[Call], Call]
) -> None:
    call = subject.call(indexed=indexed)
    with pytest.raises(exception) as caught:
        subject.function(**(call | fault(call)))
    assert str(caught.value).startswith(f"{subject.name}: {words}")


@pytest.mark.parametrize(("row", "dtype"), [(72, torch.int32), (1 << 40, torch.int64), (-2, torch.int64)], ids=str)
@over_backends(None, "reference", subjects=WINDOWED)
def test_an_index_out_of_range_is_refused_with_its_place(
    subject: Subject, backend: str | None, row: int, dtype: torch.dtype
) -> None:
    call = subject.call(indexed=True)
    index = call["window_index"].to(dtype)
    index[3, 2] = row
    words = rf"^{subject.name}: window_index\[3, 2\] is {row}; it must be -1 \(absent\) or a feature row in \[0, 72\)$"
    with pytest.raises(ValueError, match=words):
        subject.function(**(call | {"window_index": index}), backend=backend)


@over_windowed
def test_a_misspelt_option_is_refused_with_its_name(subject: Subject) -> None:
    with pytest.raises(TypeError, match=f"{subject.name}.*'windowindex'"):
        subject.function(**subject.call(), windowindex=None)


GRIDS: dict[str, Call] = {
    "height is 0; it must be at least 1": {"height": 0},
    "width is -1; it must be at least 1": {"width": -1},
    "n_h is 0; it must be at least 1": {"n_h": 0},
    "n_w is 0; it must be at least 1": {"n_w": 0},
    "batch is -1; it must be at least 0": {"batch": -1},
    "dtype is torch.float32; it must be torch.int32 or torch.int64": {"dtype": torch.float32},
}


@pytest.mark.parametrize(("words", "fault"), GRIDS.items())
def test_bad_grids_are_refused_in_words(words: str, fault: Call) -> None:
    with pytest.raises(ValueError, match=f"^window_index_from_grid: {words}$"):
        vr_kernels.window_index_from_grid(**({"height": 4, "width": 4, "n_h": 2, "n_w": 2} | fault))
