"""``text_guide_token``: the text's maximum and nothing else's, its gradient to one row a channel."""

from __future__ import annotations

import pytest
import torch

import vr_kernels
from python_tests._operators import TEXT_GUIDE_TOKEN, over_backends
from python_tests._token_cases import text_guide_call

runs = over_backends("reference", subjects=[TEXT_GUIDE_TOKEN])


def guide_and_gradient(backend: str, hidden_states: torch.Tensor, text_mask: torch.Tensor) -> list[torch.Tensor]:
    stream = hidden_states.clone().requires_grad_()
    guide, _ = vr_kernels.text_guide_token(stream, text_mask, backend=backend)
    (gradient,) = torch.autograd.grad(guide.sum(), stream)
    return [guide.detach(), gradient]


@runs
def test_it_is_torch_s_maximum_over_the_text(subject: object, backend: str) -> None:
    call = text_guide_call(batch=1, length=40)
    guide, has_text = vr_kernels.text_guide_token(**call, backend=backend)
    text = call["hidden_states"][0][call["text_mask"][0]]
    assert torch.equal(guide[0], text.amax(0))
    assert has_text.tolist() == [True]


@runs
def test_a_sample_without_text_gives_zeros_and_says_so(subject: object, backend: str) -> None:
    call = text_guide_call()
    call["hidden_states"][1] = torch.nan
    guide, has_text = vr_kernels.text_guide_token(**call, backend=backend)
    assert has_text.tolist() == [True, False, True]
    assert torch.equal(guide[1], torch.zeros(7))
    _, gradient = guide_and_gradient(backend, **call)
    assert not gradient[1].any()


@runs
def test_what_is_no_text_does_not_matter(subject: object, backend: str) -> None:
    call = text_guide_call()
    expected = guide_and_gradient(backend, **call)
    for other in (torch.nan, torch.inf):
        stream = call["hidden_states"].masked_fill(~call["text_mask"][..., None], other)
        for result, same in zip(guide_and_gradient(backend, stream, call["text_mask"]), expected, strict=True):
            assert torch.equal(result, same)


@runs
def test_the_gradient_of_equal_rows_goes_to_the_lowest(subject: object, backend: str) -> None:
    stream = torch.tensor([[9.0, 1.0], [2.0, 3.0], [2.0, 3.0], [2.0, -1.0]])[None]
    guide, gradient = guide_and_gradient(backend, stream, torch.tensor([[False, True, True, True]]))
    assert guide.tolist() == [[2.0, 3.0]]
    assert gradient.tolist() == [[[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]


@runs
def test_text_of_minus_infinity_alone_is_its_first_row(subject: object, backend: str) -> None:
    stream = torch.full((1, 4, 1), -torch.inf)
    guide, gradient = guide_and_gradient(backend, stream, torch.tensor([[False, False, True, True]]))
    assert guide.tolist() == [[-torch.inf]]
    assert gradient.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


@runs
def test_a_nan_in_the_text_wins_as_in_torch_s_maximum(subject: object, backend: str) -> None:
    stream = torch.tensor([1.0, torch.nan, 5.0, torch.nan]).view(1, 4, 1)
    guide, gradient = guide_and_gradient(backend, stream, torch.tensor([[True, True, True, True]]))
    assert guide.isnan().all()
    assert gradient.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


@runs
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 1)], ids=str)
def test_nothing_gives_nothing(subject: object, backend: str, shape: tuple[int, int, int]) -> None:
    stream = torch.empty(shape, requires_grad=True)
    guide, has_text = vr_kernels.text_guide_token(stream, torch.ones(shape[:2], dtype=torch.bool), backend=backend)
    assert torch.equal(guide, torch.zeros(shape[0], shape[2]))
    assert has_text.shape == shape[:1]
    assert not has_text.any()
    (gradient,) = torch.autograd.grad(guide.sum(), stream)
    assert gradient.shape == shape


@runs
@pytest.mark.parametrize("width", [1, 511, 512, 513, 1030])
def test_any_width_and_strides(subject: object, backend: str, width: int) -> None:
    call = text_guide_call(batch=2, length=9, width=width)
    stream = call["hidden_states"]
    padded = stream.new_full((2, 12, width + 3), torch.nan)
    padded[:, 2:11, 1 : width + 1] = stream
    expected, _ = vr_kernels.text_guide_token(**call, backend="reference")
    for view in (padded[:, 2:11, 1 : width + 1], stream.transpose(1, 2).contiguous().transpose(1, 2)):
        guide, _ = vr_kernels.text_guide_token(view, call["text_mask"], backend=backend)
        assert torch.equal(guide, expected)
