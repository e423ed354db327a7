"""``patch_linear`` reads features where they lie: any strides, levels side by side, several threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._patch_cases import convolution, patch_call
from vr_kernels.ops.token_fusion import native
from vr_kernels.ops.token_fusion.patches import Patches, as_matrix, side_by_side


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_several_threads_move_every_patch(kernel: int) -> None:
    patches = Patches(3, 7, 5, kernel)
    levels = [torch.randn(3, 7 * kernel, 5 * kernel, width) for width in (700, 333)]
    rows = torch.full((patches.count, 1033 * kernel**2), torch.nan)
    engine = native.NativePatches()
    engine.gather(levels, patches, 0, rows)
    assert rows.numel() > 2 << 15, "smaller ones are moved by one thread"
    windows = torch.cat(levels, -1).unflatten(2, (5, kernel)).unflatten(1, (7, kernel))
    assert torch.equal(rows, windows.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(0, 2))
    back = [torch.full_like(level, torch.nan) for level in levels]
    engine.scatter(rows, back, patches)
    assert all(torch.equal(*pair) for pair in zip(back, levels, strict=True))


# How the features of a grid may lie in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "without its CLS row": lambda x: torch.cat(
        [x.new_full((x.shape[0], 1, x.shape[3]), torch.nan), x.flatten(1, 2)], 1
    )[:, 1:].unflatten(1, x.shape[1:3]),
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "columns first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second channel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one image for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_features_are_read_where_they_lie(layout: Callable[[Tensor], Tensor], kernel: int) -> None:
    call = patch_call(kernel=kernel, widths=(6, 4, 9), bias=True, activation="gelu")
    laid = call | {"features": [layout(level) for level in call["features"]]}
    same = call | {"features": [level.contiguous() for level in laid["features"]]}
    for requires_grad in (False, True):
        trained = [level.detach().requires_grad_(requires_grad) for level in laid["features"]]
        out = vr_kernels.patch_linear(**(laid | {"features": trained}), backend="cpu")
        torch.testing.assert_close(out.detach(), vr_kernels.patch_linear(**same, backend="cpu"))
        if requires_grad:
            expected = [level.detach().requires_grad_() for level in same["features"]]
            stock = convolution(**(same | {"features": expected}))
            results = torch.autograd.grad(out.square().sum(), trained)
            for d, d_stock in zip(results, torch.autograd.grad(stock.square().sum(), expected), strict=True):
                torch.testing.assert_close(d, d_stock, rtol=1e-4, atol=1e-4)


def test_levels_side_by_side_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    call = patch_call(kernel=1, widths=(6, 4, 9), bias=True)
    expected = vr_kernels.patch_linear(**call, backend="cpu")
    joint = torch.cat(call["features"], -1)
    monkeypatch.setattr(native, "_move", lambda *arguments: pytest.fail("gathered"))
    beside = call | {"features": list(joint.split((6, 4, 9), -1))}
    torch.testing.assert_close(vr_kernels.patch_linear(**beside, backend="cpu"), expected)


def test_only_neighbours_in_one_buffer_count_as_side_by_side() -> None:
    joint = torch.arange(2 * 3 * 4 * 12.0).view(2, 3, 4, 12)
    a, b, c = joint.split((5, 3, 4), -1)
    found = side_by_side([a, b, c])
    assert found is not None
    assert torch.equal(found, joint)
    found = side_by_side([b, c])
    assert found is not None
    assert torch.equal(found, joint[..., 5:])
    for others in ([b, a], [a, c], [a, a], [a, b.clone()], [a[:1], joint[1:, ..., 5:8]], [a, b.transpose(1, 2)]):
        assert side_by_side(others) is None


def test_features_are_a_matrix_where_their_rows_are_at_one_distance() -> None:
    x = torch.arange(2 * 7 * 6.0).view(2, 7, 6)
    grid = x[:, 1:].unflatten(1, (2, 3))  # two images, a row of each cut off
    assert as_matrix(grid, Patches(2, 2, 3, 1)) is None
    one = as_matrix(grid[1:, ..., 2:5], Patches(1, 2, 3, 1))
    assert one is not None
    assert torch.equal(one, x[1, 1:, 2:5])
    assert as_matrix(x[:1, :6].unflatten(1, (2, 3)), Patches(1, 1, 1, 2)) is None
    assert as_matrix(x[:1, :1].unflatten(1, (1, 1)).expand(1, 2, 3, 6), Patches(1, 2, 3, 1)) is None
