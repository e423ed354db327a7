"""Sizes past what 16 and 32 bits count: 70,000 windows, and tensors of more than 2**31 elements."""

from __future__ import annotations

import pytest
import torch

import vr_kernels
from python_tests._operators import ATTENTION_IMPORTANCE, LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION
from python_tests.gpu._gpu import need, over_kernels

pytestmark = pytest.mark.gpu

WINDOWS = 70_000


def need_memory(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes << 30:
        pytest.skip(f"needs {gigabytes} GiB of GPU memory, {free / 2**30:.0f} are free")


@over_kernels(LOCAL_ATTENTION)
def test_70_000_windows_of_a_table(backend: str) -> None:
    need(LOCAL_ATTENTION, backend)
    query = torch.randn(WINDOWS, 4, 32, device="cuda", requires_grad=True)
    key = torch.randn(1000, 2, 32, device="cuda", requires_grad=True)
    index = torch.randint(-1, 1000, (WINDOWS, 5), device="cuda")
    out = vr_kernels.local_attention(query, key, window_index=index, backend=backend)
    (d_query,) = torch.autograd.grad(out.square().sum(), query)
    tail = query[-7:].detach().requires_grad_()
    alone = vr_kernels.local_attention(tail, key, window_index=index[-7:], backend=backend)
    assert torch.equal(out[-7:], alone)
    assert torch.equal(d_query[-7:], torch.autograd.grad(alone.square().sum(), tail)[0])


@over_kernels(LOCAL_CROSS_ATTENTION)
def test_70_000_windows_of_a_grid_and_their_feature_gradient(backend: str) -> None:
    need(LOCAL_CROSS_ATTENTION, backend)
    levels = [torch.randn(35, 100, 40, 16, device="cuda", requires_grad=True) for _ in range(2)]
    query = torch.randn(35, 50, 40, 32, device="cuda")  # windows of 2x1
    weights = [torch.randn(32, 32, device="cuda") * 0.1 for _ in range(2)]
    out = vr_kernels.local_cross_attention(query, levels, *weights, num_heads=4, backend=backend)
    gradients = torch.autograd.grad(out.square().sum(), levels)
    tail = [level[-1:].detach().requires_grad_() for level in levels]
    alone = vr_kernels.local_cross_attention(query[-1:], tail, *weights, num_heads=4, backend=backend)
    torch.testing.assert_close(out[-1:], alone)
    for gradient, expected in zip(gradients, torch.autograd.grad(alone.square().sum(), tail), strict=True):
        torch.testing.assert_close(gradient[-1:], expected)


@over_kernels(LOCAL_ATTENTION)
def test_a_table_of_more_than_2_to_the_31_elements(backend: str) -> None:
    need(LOCAL_ATTENTION, backend)
    need_memory(12)
    rows, width = 2**25 + 64, 64
    key = torch.empty(rows, 1, width, dtype=torch.bfloat16, device="cuda")
    key[-64:].normal_()
    key[:64].normal_()
    query = torch.randn(32, 4, width, dtype=torch.bfloat16, device="cuda")
    near = torch.arange(64, device="cuda").view(32, 2)
    far = near + rows - 64
    index = torch.cat([near, far], 1)
    small = torch.cat([key[:64], key[-64:]])
    out = vr_kernels.local_attention(query, key, window_index=index, backend=backend)
    expected = vr_kernels.local_attention(query, small, window_index=torch.cat([near, near + 64], 1), backend=backend)
    assert torch.equal(out, expected)


@over_kernels(LOCAL_ATTENTION)
def test_queries_and_outputs_of_more_than_2_to_the_31_elements(backend: str) -> None:
    need(LOCAL_ATTENTION, backend)
    need_memory(24)
    query = torch.randn(WINDOWS, 16, 2048, dtype=torch.bfloat16, device="cuda")  # 2.3e9 elements
    key = torch.randn(100, 1, 2048, dtype=torch.bfloat16, device="cuda")
    index = torch.randint(100, (WINDOWS, 4), device="cuda")
    out = vr_kernels.local_attention(query, key, window_index=index, backend=backend)
    assert out.numel() > 2**31
    for rows in (slice(0, 8), slice(WINDOWS - 8, WINDOWS)):
        alone = vr_kernels.local_attention(query[rows], key, window_index=index[rows], backend=backend)
        assert torch.equal(out[rows], alone)


@over_kernels(ATTENTION_IMPORTANCE)
def test_keys_of_more_than_2_to_the_31_elements(backend: str) -> None:
    need(ATTENTION_IMPORTANCE, backend)
    need_memory(8)
    tokens = 2**21 + 64
    key = torch.zeros(1, tokens, 16, 64, dtype=torch.bfloat16, device="cuda")
    query_rows = torch.randn(1, 1, 16, 64, dtype=torch.bfloat16, device="cuda")
    ends = (slice(0, 64), slice(tokens - 64, tokens))
    for rows in ends:
        key[:, rows].normal_()
    assert key.numel() > 2**31
    scores = vr_kernels.attention_importance(query_rows, key, normalize="none", backend=backend)
    for rows in ends:
        alone = vr_kernels.attention_importance(query_rows, key[:, rows], normalize="none", backend=backend)
        assert torch.equal(scores[:, rows], alone)
