"""Which feature rows each query reads: the geometry of a call, and the plain gather that defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature, remember
from vr_kernels.ops._dispatch import Request


@dataclass(frozen=True)
class Windows:
    """N windows of K slots over M feature rows.

    The grid form divides an (H, W) grid into n_h x n_w windows, row-major windows and row-major inside; feature row
    m = (b*H + y)*W + x. The indexed form reads rows of an (M, ...) table by an (N, K) index; ``window`` is None.
    """

    leading: tuple[int, ...]  # the query's (B, n_h, n_w) or (N,)
    rows: tuple[int, ...]  # the features' (B, H, W) or (M,)
    window: tuple[int, int] | None  # (s_h, s_w)
    slots: int  # K

    @property
    def count(self) -> int:
        n = 1
        for size in self.leading:
            n = n * size
        return n

    @property
    def row_count(self) -> int:
        m = 1
        for size in self.rows:
            m = m * size
        return m


@dataclass(frozen=True, kw_only=True)
class WindowRequest(Request):
    """A windowed attention call, as its backends see it."""

    windows: Windows
    heads: int
    channels: int  # width of one key
    levels: int = 1  # tensors whose concatenation is a key


def typical_request(device: str, dtype: torch.dtype) -> WindowRequest:
    """Vision Remember v2: five tiles of 24x24 features, three levels of 1024 channels, windows of 3x3."""
    windows = Windows(leading=(5, 8, 8), rows=(5, 24, 24), window=(3, 3), slots=9)
    return WindowRequest(device, dtype, windows=windows, heads=24, channels=3072, levels=3)


def windows_of(
    arguments: Arguments, query: tuple[int, ...], name: str, features: tuple[int, ...], window_index: Signature | None
) -> Windows:
    """The geometry of a call from its leading shapes: query (B, n_h, n_w) | (N,), features (B, H, W) | (M,)."""
    if len(query) == 3:
        if window_index is not None:
            raise arguments.error(
                f"window_index is given, and query has the grid form's leading shape {query}; "
                "a window_index needs the indexed form, query (N, ...)"
            )
        if len(features) != 3:
            raise arguments.error(f"{name} has leading shape {features}; the grid form takes (B, H, W)")
        return _grid_windows(arguments, query, name, features)
    if window_index is None:
        raise arguments.error(
            f"query has the indexed form's leading shape {query}, and window_index is None; give (N, K)"
        )
    if len(features) != 1:
        raise arguments.error(f"{name} has leading shape {features}; the indexed form takes (M,)")
    if len(window_index.shape) != 2 or window_index.shape[0] != query[0]:
        raise arguments.error(f"window_index has shape {window_index.shape}; it must be (N, K) with N = {query[0]}")
    return Windows(query, features, None, window_index.shape[1])


def _grid_windows(arguments: Arguments, query: tuple[int, ...], name: str, features: tuple[int, ...]) -> Windows:
    batch, n_h, n_w = query
    if features[0] != batch:
        raise arguments.error(f"{name} has batch {features[0]}, query has {batch}; they must be equal")
    window = []
    for axis, n, size in (("height", n_h, features[1]), ("width", n_w, features[2])):
        if n == 0 or size == 0 or size % n != 0:
            raise arguments.error(
                f"{name} has {axis} {size}, query has {n} windows along it; the grid form needs a whole number of "
                "rows a window (window_index_from_grid makes ragged windows)"
            )
        window.append(size // n)
    return Windows(query, features, (window[0], window[1]), window[0] * window[1])


def gather_windows(features: Tensor, windows: Windows, window_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """features (*rows, ...) -> each query's rows (N, K, ...), and which slots are present (N, K)."""
    trailing = features.shape[len(windows.rows) :]
    if windows.window is None:
        assert window_index is not None
        present = (window_index >= 0) & (window_index < windows.row_count)  # past the end counts as absent
        if windows.row_count == 0:  # every slot is absent: a row of zeros for them to name keeps features in the graph
            features = torch.cat([features, features.new_zeros(1, *trailing)])
        index = window_index.where(present, 0).to(torch.int64)  # (N, K)
        absent = ~present.view(*present.shape, *[1] * len(trailing))
        return features[index].masked_fill(absent, 0), present  # a NaN in row 0 must not come in by an absent slot
    batch, n_h, n_w = windows.leading
    s_h, s_w = windows.window
    grid = features.reshape(batch, n_h, s_h, n_w, s_w, *trailing)
    gathered = grid.transpose(2, 3).reshape(windows.count, windows.slots, *trailing)
    return gathered, torch.ones(gathered.shape[:2], dtype=torch.bool, device=features.device)


def window_index_from_grid(
    height: int,
    width: int,
    n_h: int,
    n_w: int,
    *,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """The windows of adaptive pooling over an (height, width) grid, as an index for the indexed form.

    Window i of n covers rows floor(i*H/n) up to ceil((i+1)*H/n), as ``torch.nn.AdaptiveAvgPool2d``: where n does not
    divide H neighbouring windows overlap and differ in size; short ones are padded with -1.

    Args:
        height, width: the feature grid, at least 1. n_h, n_w: windows along each axis, at least 1.
        batch: images; image b's rows start at b*height*width.
        device: where the index is made; None is torch's default device. dtype: int64 or int32.

    Returns:
        (batch*n_h*n_w, K) of ``dtype`` (int64 or int32), K the largest window; feature rows in row-major order.

    Raises:
        ValueError: a size below one; a dtype other than int32 and int64, or too narrow for the rows; a device that
            torch cannot use.
        TypeError: a size that is no int.

    >>> window_index_from_grid(3, 2, 2, 1)
    tensor([[0, 1, 2, 3],
            [2, 3, 4, 5]])
    """
    arguments = Arguments("window_index_from_grid")
    sizes = (("height", height, 1), ("width", width, 1), ("n_h", n_h, 1), ("n_w", n_w, 1), ("batch", batch, 0))
    for name, size, least in sizes:
        arguments.integer(name, size, least)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.int32, torch.int64):
        raise arguments.error(f"dtype is {dtype}; it must be torch.int32 or torch.int64")
    rows = batch * height * width
    if rows > torch.iinfo(dtype).max or max(height * (n_h + 2), width * (n_w + 2)) > torch.iinfo(torch.int64).max:
        raise arguments.error(
            f"batch, height and width are {batch}, {height} and {width}, n_h and n_w {n_h} and {n_w}; "
            f"rows are numbered in {dtype}, windows in torch.int64, and these are too many"
        )
    arguments.device("device", device)

    def spans(size: int, n: int) -> tuple[Tensor, Tensor]:
        i = torch.arange(n, device=device)
        start, stop = i * size // n, ((i + 1) * size + n - 1) // n
        position = start[:, None] + torch.arange(int((stop - start).max()), device=device)  # (n, longest)
        return position, position < stop[:, None]

    y, y_present = spans(height, n_h)  # (n_h, k_h)
    x, x_present = spans(width, n_w)  # (n_w, k_w)
    row = y[:, None, :, None] * width + x[None, :, None, :]  # (n_h, n_w, k_h, k_w)
    present = y_present[:, None, :, None] & x_present[None, :, None, :]
    row = row + torch.arange(batch, device=device).view(-1, 1, 1, 1, 1) * (height * width)
    index = row.masked_fill(~present, -1).reshape(batch * n_h * n_w, y.shape[1] * x.shape[1])
    # Present slots first, so that a window's rows read as adaptive pooling lists them; the sort is stable.
    order = (index < 0).to(torch.int8).argsort(dim=1, stable=True)
    return index.gather(1, order).to(dtype)


def scatter_windows(slots: Tensor, windows: Windows, window_index: Tensor | None) -> Tensor:
    """The adjoint of ``gather_windows`` for one number a slot: (N, K) -> (*rows), absent slots ignored."""
    if windows.window is None:
        assert window_index is not None
        # One row past the end takes what absent slots carry.
        present = (window_index >= 0) & (window_index < windows.row_count)
        index = window_index.where(present, windows.row_count).to(torch.int64)
        rows = slots.new_zeros(windows.row_count + 1)
        return rows.index_add_(0, index.reshape(-1), slots.reshape(-1))[:-1]
    batch, n_h, n_w = windows.leading
    grid = slots.reshape(batch, n_h, n_w, *windows.window).transpose(2, 3)
    return grid.reshape(windows.rows)


@remember
def _windows_of_shapes(
    query: tuple[int, ...], features: tuple[int, ...], window_index: tuple[int, ...] | None
) -> Windows:
    if window_index is not None:
        return Windows(query, features, None, window_index[1])
    window = (features[1] // query[1], features[2] // query[2])
    return Windows(query, features, window, window[0] * window[1])


def windows_between(query: Tensor, features: Tensor, window_index: Tensor | None, *, query_dims: int) -> Windows:
    """The geometry of a checked call, for the operators: below torch's dispatcher they see tensors again.

    ``query_dims`` is how many of the query's dimensions follow its leading ones.
    """
    leading = query.dim() - query_dims
    index_shape = None if window_index is None else window_index.shape
    return _windows_of_shapes(query.shape[:leading], features.shape[:leading], index_shape)
