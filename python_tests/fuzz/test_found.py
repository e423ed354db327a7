"""What the fuzzer found in the operators, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import DTYPES, Call, leading_argument, map_tensors
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import PATCH_LINEAR, SUBJECTS, Subject, over, over_backends


@over_backends()
def test_lazily_negated_tensors_are_not_read_with_the_wrong_sign(subject: Subject, backend: str) -> None:
    function, call = subject.run(backend), subject.call()
    cotangents = random_cotangents(function, call)
    negated = map_tensors(call, lambda tensor: torch.complex(tensor, -tensor).conj().imag)
    torch.testing.assert_close(function(**negated), function(**call), rtol=1e-5, atol=1e-5)
    expected = evaluate(function, call, cotangents)
    opposite = [torch._neg_view(-c) if c.is_floating_point() else c for c in cotangents]
    result = evaluate(function, call, opposite)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@over(SUBJECTS)
@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_a_tensor_without_strides_is_refused_in_words(subject: Subject, change: Callable[[Tensor], Tensor]) -> None:
    call = subject.call()
    name = leading_argument(call)
    value = call[name]
    changed = [change(part) for part in value] if isinstance(value, list) else change(value)
    with pytest.raises(TypeError, match=rf"^{subject.name}: {name}.* is a torch.*; it must be a dense one"):
        subject.function(**(call | {name: changed}))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_is_refused_in_words() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)])
    with pytest.raises(TypeError, match=r"^text_guide_token: hidden_states is a nested tensor"):
        vr_kernels.text_guide_token(nested, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_queries_that_overlap_get_an_output_that_was_written(backend: str) -> None:
    # torch 2.13's SDPA leaves memory as it found it where the query's rows share elements.
    key, value = torch.randn(2, 2, 5, 3, 8).unbind()
    query = torch.randn(40).as_strided((2, 5, 3, 8), (1, 1, 1, 1))
    result = vr_kernels.bidirectional_attention(query, key, value, backend=backend)
    torch.testing.assert_close(result, vr_kernels.bidirectional_attention(query.contiguous(), key, value))


@pytest.mark.parametrize("backend", ["cpu", "grid_sample", "reference"])
@pytest.mark.parametrize("place", [torch.nan, torch.inf, -torch.inf, 1e30, 1.5, -0.5])
def test_a_location_that_is_no_number_is_outside(place: float, backend: str) -> None:
    value, weights = torch.ones(1, 1, 1, 1, 4), torch.ones(1, 1, 1, 1, 2)
    places = torch.tensor([[0.5, 0.5], [place, 0.5]]).view(1, 1, 1, 1, 2, 2)
    out = vr_kernels.deformable_attention(value, places, weights, backend=backend)
    torch.testing.assert_close(out, torch.ones(1, 1, 1, 4))


@over_backends("reference", subjects=[PATCH_LINEAR])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_whose_elements_lie_apart_is_read_where_it_lies(
    subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    # oneDNN, which the CPU backend calls, read past the end of an expanded bias.
    call = subject.call(dtype=dtype, bias=True)
    function, bias = subject.run(backend), call["bias"]
    for other in (bias[:1].expand(bias.shape), torch.stack([bias, bias + 99], 1)[:, 0]):
        expected = function(**(call | {"bias": other.contiguous()}))
        tolerance = (
            8 * torch.finfo(dtype).eps
        )  # torch's GEMMs round otherwise where their operands are strided otherwise
        torch.testing.assert_close(function(**(call | {"bias": other})), expected, rtol=tolerance, atol=tolerance)


KEYS = torch.ones(1, 4, 4, 1, 8)
STREAM = torch.ones(1, 3, 2)
ROWS = torch.tensor([[0, 1]])
WORDS: dict[str, tuple[Callable[..., Any], Call]] = {
    "local_attention: return_lse is 'yes'; it must be a bool":
        (vr_kernels.local_attention, {"query": KEYS, "key": KEYS, "return_lse": "yes"}),
    "local_attention: return_attention is 2; it must be a bool":
        (vr_kernels.local_attention, {"query": KEYS, "key": KEYS, "return_attention": 2}),
    "local_attention: scale is an integer of 1329 bits; it must be one that a float can hold":
        (vr_kernels.local_attention, {"query": KEYS, "key": KEYS, "scale": 10**400}),
    "local_attention: backend is ['cpu']; it must be None or one of":
        (vr_kernels.local_attention, {"query": KEYS, "key": KEYS, "backend": ["cpu"]}),
    "cls_saliency: source is array":
        (vr_kernels.cls_saliency,
         {"cls_query": torch.ones(1, 2, 4), "key": torch.ones(1, 3, 2, 4), "source": np.ones(2)}),
    "gather_tokens: norm_eps is None; it must be a number":
        (vr_kernels.gather_tokens, {"hidden_states": STREAM, "token_rows": ROWS, "norm_eps": None}),
    "patch_linear: bias is a str; it must be a torch.Tensor":
        (vr_kernels.patch_linear, {"features": torch.ones(1, 2, 2, 3), "weight": torch.ones(4, 3), "bias": "zero"}),
    "attention_density: vision_mask has shape (2, 4); it must broadcast with attention's (3, 4)":
        (vr_kernels.attention_density,
         {"attention": torch.ones(3, 4), "vision_mask": torch.ones(2, 4, dtype=torch.bool)}),
    "window_index_from_grid: height is 4.0; it must be an int":
        (vr_kernels.window_index_from_grid, {"height": 4.0, "width": 4, "n_h": 2, "n_w": 2}),
    "window_index_from_grid: batch, height and width are 65536, 256 and 256":  # 2**32 rows
        (vr_kernels.window_index_from_grid,
         {"height": 256, "width": 256, "n_h": 1, "n_w": 1, "batch": 65536, "dtype": torch.int32}),
    "window_index_from_grid: batch, height and width are 9223372036854775808, 1 and 1":
        (vr_kernels.window_index_from_grid, {"height": 1, "width": 1, "n_h": 1, "n_w": 1, "batch": 2**63}),
    "window_index_from_grid: device is 9223372036854775808; torch cannot use it":
        (vr_kernels.window_index_from_grid, {"height": 4, "width": 4, "n_h": 2, "n_w": 2, "device": 2**63}),
    "window_index_from_grid: device is 'nowhere'; torch cannot use it":
        (vr_kernels.window_index_from_grid, {"height": 4, "width": 4, "n_h": 2, "n_w": 2, "device": "nowhere"}),
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_what_escaped_the_checks_is_refused_in_words(words: str) -> None:
    function, call = WORDS[words]
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**call)
    assert str(caught.value).startswith(words)
