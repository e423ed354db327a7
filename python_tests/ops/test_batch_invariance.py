"""A sample's result does not depend on what stands beside it, bit for bit, where all of it is a kernel's own work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vr_kernels import (
    deformable_attention,
    gather_tokens,
    local_attention,
    text_guide_token,
)

BATCH = 5
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def calls(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Functions of tensors whose first axis is the batch."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape).to(dtype)

    def deformable(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention(value, places, weights, backend="cpu")

    places, weights = torch.rand(BATCH, 7, 3, 1, 4, 2), torch.rand(BATCH, 7, 3, 1, 4)
    rows = torch.tensor([[4, 0, 9]])
    return {
        "local_attention": (
            lambda q, k: local_attention(q, k, backend="cpu"),
            (randn(3, 5, 6, 17), randn(9, 10, 2, 17)),
        ),
        "deformable_attention": (deformable, (randn(7, 5, 3, 17), places, weights)),
        "text_guide_token": (
            lambda x, mask: text_guide_token(x, mask, backend="cpu")[0],
            (randn(13, 67), torch.rand(BATCH, 13) > 0.5),
        ),
        "gather_tokens": (
            lambda x, weight: gather_tokens(
                x, rows + 13 * torch.arange(len(x))[:, None], norm_weight=weight[0], backend="cpu"
            ),
            (randn(13, 67), torch.ones(BATCH, 67, dtype=dtype)),
        ),
    }


@DTYPES
@pytest.mark.parametrize("name", calls(torch.float32))
def test_a_sample_has_the_bits_in_a_batch_that_it_has_alone(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    function, tensors = calls(dtype)[name]
    together = function(*tensors)
    for sample in range(BATCH):
        alone = function(*(tensor[sample : sample + 1] for tensor in tensors))
        assert torch.equal(together[sample : sample + 1], alone)
