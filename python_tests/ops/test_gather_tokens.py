"""``gather_tokens``: padding, strides, sizes and shared samples; the coverage matrix has the error rule."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import vr_kernels
from python_tests._cases import DTYPES
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import GATHER_TOKENS, Subject, over_backends
from python_tests._token_cases import gather_call

runs = over_backends("reference", subjects=[GATHER_TOKENS])
kernels = over_backends(subjects=[GATHER_TOKENS])

EVERYTHING = {"norm": True, "guide": True, "images": 5}


@runs
def test_padding_is_zeros_and_reads_nothing(subject: Subject, backend: str) -> None:
    call = gather_call(**EVERYTHING)
    call["hidden_states"][0, 0] = torch.nan  # what a careless clamp of -1 would read
    call["token_rows"][call["token_rows"] == 0] = -1
    call["text_mask"][0, 0] = False
    result = evaluate(subject.run(backend), call, random_cotangents(subject.run(backend), call))
    padding = call["token_rows"] < 0
    assert not result["output 0"][:, :-1][padding].any()
    assert all(tensor.isfinite().all() for tensor in result.values())
    assert not result["d hidden_states"][0, 0].any()


@runs
def test_the_norm_comes_after_the_maximum(subject: Subject, backend: str) -> None:
    # Row 1 is the larger in every channel, and the smaller in most once both are normalised.
    stream = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 50.0], [0.0, 0.0, 0.0, 0.0]])[None]
    mask, rows = torch.tensor([[True, True, False]]), torch.tensor([[2]])
    out = vr_kernels.gather_tokens(stream, rows, norm_weight=torch.ones(4), text_mask=mask, backend=backend)
    torch.testing.assert_close(out[0, 1], stream[0, 1] / stream[0, 1].square().mean().sqrt())


@runs
def test_images_of_one_sample_share_its_guide_and_its_gradient_sums_theirs(subject: Subject, backend: str) -> None:
    call = gather_call(norm=True, guide=True, images=4, batch=2)
    call["image_sample"] = torch.tensor([0, 1, 0, 0])
    function = subject.run(backend)
    (out,) = function(**call)
    assert torch.equal(out[0, -1], out[2, -1])
    assert torch.equal(out[1, -1], torch.zeros(7)), "the second sample has no text"
    cotangent = torch.zeros_like(out)
    cotangent[:, -1] = torch.randn(4, 7)
    together = evaluate(function, call, [cotangent])["d hidden_states"]
    alone = torch.zeros_like(together)
    for i in (0, 2, 3):
        one = torch.zeros_like(cotangent)
        one[i] = cotangent[i]
        alone += evaluate(function, call, [one])["d hidden_states"]
    torch.testing.assert_close(together, alone)


@runs
def test_a_vision_row_that_is_text_too_gets_both_gradients(subject: Subject, backend: str) -> None:
    stream = torch.tensor([[[1.0], [5.0]]], requires_grad=True)
    out = vr_kernels.gather_tokens(stream, torch.tensor([[1]]), text_mask=torch.tensor([[True, True]]), backend=backend)
    out.sum().backward()
    assert stream.grad is not None
    assert stream.grad.flatten().tolist() == [0.0, 2.0]


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 97, 301])
def test_any_width_obeys_the_error_rule(subject: Subject, backend: str, width: int, dtype: torch.dtype) -> None:
    subject.assert_obeys_the_error_rule(
        backend,
        lambda seed: gather_call(seed, **EVERYTHING, dtype=dtype, width=width),
        norms=["root_mean_square"],
    )


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_weight_of_a_narrow_stream_obeys_the_error_rule(
    subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    subject.assert_obeys_the_error_rule(
        backend,
        lambda seed: gather_call(seed, **EVERYTHING, dtype=dtype, auxiliary=torch.float32),
    )


@kernels
@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_sums_over_any_number_of_rows_obey_the_error_rule(subject: Subject, backend: str, tokens: int) -> None:
    subject.assert_obeys_the_error_rule(
        backend,
        lambda seed: gather_call(seed, **EVERYTHING, tokens=tokens, length=150),
    )


@kernels
@hypothesis.given(
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(1, 4),
            "length": st.integers(1, 9),
            "width": st.integers(1, 40),
            "tokens": st.integers(0, 6),
            "images": st.sampled_from([None, 1, 3]),
            "norm": st.booleans(),
            "guide": st.booleans(),
            "dtype": st.sampled_from(DTYPES),
        }
    )
)
def test_every_shape_equals_the_definition(subject: Subject, backend: str, sizes: dict[str, Any]) -> None:
    call = gather_call(**sizes)
    cotangents = random_cotangents(subject.run("reference"), call)
    expected = evaluate(subject.run("reference"), call, cotangents)
    tolerance = 64 * torch.finfo(sizes["dtype"]).eps
    for name, result in evaluate(subject.run(backend), call, cotangents).items():
        largest = float(expected[name].abs().max()) if expected[name].numel() else 0.0
        torch.testing.assert_close(result, expected[name], rtol=tolerance, atol=tolerance * largest, msg=name)


@runs
@pytest.mark.parametrize("images", [0, 3])
def test_no_images_or_no_tokens(subject: Subject, backend: str, images: int) -> None:
    call = gather_call(norm=True, guide=True, images=images, tokens=0)
    result = evaluate(subject.run(backend), call, random_cotangents(subject.run(backend), call))
    assert result["output 0"].shape == (images, 1, 7)
    assert result["d hidden_states"].shape == call["hidden_states"].shape
    assert images > 0 or not result["d norm_weight"].any()


@kernels
def test_strides_and_the_index_s_width_change_nothing(subject: Subject, backend: str) -> None:
    call = gather_call(**EVERYTHING)
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    stream = call["hidden_states"]
    wide = stream.new_full((stream.shape[0], stream.shape[1] + 1, 2 * stream.shape[2]), torch.nan)
    wide[:, 1:, : stream.shape[2]] = stream
    views = [wide[:, 1:, : stream.shape[2]], stream.transpose(0, 2).contiguous().transpose(0, 2)]
    strided = {
        "token_rows": call["token_rows"].t().contiguous().t().int(),
        "text_mask": call["text_mask"].t().contiguous().t(),
        "image_sample": call["image_sample"].repeat_interleave(2)[::2].int(),
    }
    for view in views:
        for name, result in evaluate(function, call | strided | {"hidden_states": view}, cotangents).items():
            assert torch.equal(result, expected[name]), name


@kernels
@pytest.mark.parametrize("wanted", [["hidden_states"], ["norm_weight"]], ids=str)
def test_a_gradient_asked_for_alone_is_the_same(subject: Subject, backend: str, wanted: list[str]) -> None:
    call = gather_call(**EVERYTHING)
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    result = evaluate(function, call, cotangents, wanted)
    assert torch.equal(result[f"d {wanted[0]}"], expected[f"d {wanted[0]}"])


@runs
def test_the_norm_sees_the_stream_as_it_is_under_autocast(subject: Subject, backend: str) -> None:
    call = gather_call(**EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = subject.run(backend)(**call)
    assert torch.equal(out, subject.run(backend)(**call)[0])


def test_a_row_of_tiny_numbers_has_a_finite_gradient() -> None:
    call = gather_call(norm=True)
    call["hidden_states"] *= 1e-12
    call["norm_eps"] = 1e-30
    for backend in ("cpu", "reference"):
        function = GATHER_TOKENS.run(backend)
        result = evaluate(function, call, random_cotangents(function, call))
        assert all(tensor.isfinite().all() for tensor in result.values())
