"""Which rows a window reads: ``window_index_from_grid`` is adaptive pooling's, gather and scatter are adjoint."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import random_index
from vr_kernels.ops._windows import Windows, gather_windows, scatter_windows

GRIDS = [(6, 6, 3, 3), (6, 4, 6, 1), (5, 7, 2, 3), (7, 5, 3, 4), (2, 3, 5, 4), (1, 1, 1, 1), (1, 1, 3, 2)]


def pooled_by_index(features: Tensor, n_h: int, n_w: int) -> Tensor:
    """Mean over each window of (B, H, W, C), as ``AdaptiveAvgPool2d`` gives it: (B, n_h, n_w, C)."""
    batch, height, width, channels = features.shape
    index = vr_kernels.window_index_from_grid(height, width, n_h, n_w, batch=batch)
    rows = features.reshape(-1, channels)
    means = [rows[window[window >= 0]].mean(0) for window in index]
    return torch.stack(means).view(batch, n_h, n_w, channels)


@hypothesis.example((3, 5, 2, 2), 1)
@hypothesis.given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(1, 3))
def test_windows_are_those_of_adaptive_pooling(sizes: tuple[int, int, int, int], batch: int) -> None:
    height, width, n_h, n_w = sizes
    features = torch.randn(batch, height, width, 3, dtype=torch.float64)
    pool = torch.nn.AdaptiveAvgPool2d((n_h, n_w))
    expected = pool(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled_by_index(features, n_h, n_w), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_windows_list_present_rows_in_order_and_pad_the_end(sizes: tuple[int, int, int, int]) -> None:
    index = vr_kernels.window_index_from_grid(*sizes, batch=2)
    assert index.shape[0] == 2 * sizes[2] * sizes[3]
    for window in index.tolist():
        present = [row for row in window if row >= 0]
        assert window == sorted(present) + [-1] * (len(window) - len(present))
    assert (index >= 0).all(0).any(), "the widest window sets K"


def test_ragged_windows_overlap_in_both_directions() -> None:
    top_left, top_right, bottom_left, bottom_right = (
        {row for row in window if row >= 0} for window in vr_kernels.window_index_from_grid(5, 5, 2, 2).tolist()
    )
    assert top_left & top_right == {2, 7, 12}
    assert top_left & bottom_left == {10, 11, 12}
    assert top_left & bottom_right == {12}
    assert top_left | top_right | bottom_left | bottom_right == set(range(25))


def test_an_image_s_windows_stay_in_its_own_rows() -> None:
    index = vr_kernels.window_index_from_grid(3, 5, 2, 2, batch=3).view(3, 4, -1)
    one = vr_kernels.window_index_from_grid(3, 5, 2, 2)
    for image in range(3):
        assert torch.equal(index[image], torch.where(one < 0, one, one + 15 * image))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_index_has_the_dtype_and_device_asked_for(dtype: torch.dtype) -> None:
    index = vr_kernels.window_index_from_grid(5, 5, 2, 2, dtype=dtype, device="cpu")
    assert (index.dtype, index.device.type) == (dtype, "cpu")
    assert torch.equal(index.long(), vr_kernels.window_index_from_grid(5, 5, 2, 2))


def test_no_image_has_no_window() -> None:
    assert vr_kernels.window_index_from_grid(4, 4, 2, 2, batch=0).shape == (0, 4)


@pytest.mark.parametrize("sizes", [(6, 6, 3, 2), (4, 9, 1, 3)], ids=str)
def test_the_index_of_a_dividing_grid_is_the_grid_form(sizes: tuple[int, int, int, int]) -> None:
    height, width, n_h, n_w = sizes
    query, key = torch.randn(2, n_h, n_w, 2, 8), torch.randn(2, height, width, 2, 8)
    grid = vr_kernels.local_attention(query, key)
    index = vr_kernels.window_index_from_grid(height, width, n_h, n_w, batch=2)
    indexed = vr_kernels.local_attention(query.flatten(0, 2), key.flatten(0, 2), window_index=index)
    torch.testing.assert_close(indexed.view_as(grid), grid, rtol=0, atol=0)


@pytest.mark.parametrize("indexed", [False, True])
def test_scatter_is_the_adjoint_of_gather(indexed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    index = random_index(generator, 12, 6, 72) if indexed else None
    windows = Windows((12,), (72,), None, 6) if indexed else Windows((2, 2, 3), (2, 4, 9), (2, 3), 6)
    rows = torch.randn(windows.rows, dtype=torch.float64)
    gathered, present = gather_windows(rows, windows, index)
    slots = torch.randn(12, 6, dtype=torch.float64)
    scattered = scatter_windows(slots, windows, index)
    assert scattered.shape == rows.shape
    torch.testing.assert_close((gathered * slots * present).sum(), (rows * scattered).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("queries", [0, 3])
def test_an_empty_table_of_keys_stays_in_the_graph(backend: str, queries: int) -> None:
    # A batch without an image: data-parallel training waits for the gradients of the projections behind key and value.
    query, key, value = (torch.randn(n, 2, 4, requires_grad=True) for n in (queries, 0, 0))
    index = torch.full((queries, 5), -1)
    out = vr_kernels.local_attention(query, key, value, window_index=index, backend=backend)
    assert isinstance(out, Tensor)
    assert not out.any()
    gradients = torch.autograd.grad(out.sum(), [query, key, value])
    assert [gradient.shape for gradient in gradients] == [(queries, 2, 4), (0, 2, 4), (0, 2, 4)]
    assert not gradients[0].any()
