"""``PerceiverProjector``: learned queries that attend to a whole tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.compression.projectors.base import Projector
from vr_kernels.nn._sizes import check_positive
from vr_kernels.nn._token_tables import check_sizes
from vr_kernels.ops._arguments import Arguments

NORM_EPS = 1e-6


class PerceiverProjector(Projector):
    """MiniCPM-V's resampler (arXiv:2408.01800): learned queries, one cross-attention with all features of a tile.

    ``W post(attention(norm(queries), norm(W_kv f) + position, norm(W_kv f)))``: no residual, no feed-forward. The
    position is a fixed 2-D sine-cosine table, on the keys only.

    A query reads the whole tile, and has no place in it. To give Vision Remember a window, the queries are numbered as
    a grid, and stand for the regions of adaptive pooling: ``window_index`` names the region, not what was read.

    Args:
        window: not read; the number of queries does not depend on that of the features.
        query_grid: (n_h, n_w) of the queries; the default is MiniCPM-V's 64.
        num_heads: None: one per 128 channels of hidden_size, at least one. It divides hidden_size.

    Raises:
        ValueError: a hidden_size that is no multiple of 4, which the position needs.

    >>> PerceiverProjector(32, 48, query_grid=(2, 3))([torch.randn(1, 6, 6, 32)]).tokens.shape
    torch.Size([1, 6, 48])
    """

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        query_grid: tuple[int, int] = (8, 8),
        num_heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window)
        arguments = Arguments(type(self).__name__)
        check_sizes(arguments, "query_grid", query_grid)
        self.query_grid = (query_grid[0], query_grid[1])
        self.num_heads = max(1, hidden_size // 128) if num_heads is None else num_heads
        check_positive(arguments.operator, num_heads=self.num_heads)
        if hidden_size % 4 != 0 or hidden_size % self.num_heads != 0:
            raise arguments.error(
                f"hidden_size is {hidden_size}, num_heads is {self.num_heads}; hidden_size must be a multiple of both "
                "4 and num_heads"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Parameter(torch.empty(self.query_grid[0] * self.query_grid[1], hidden_size, **factory))
        width = self.feature_dims[0]
        self.kv_proj = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size, bias=False, **factory)
        self.attn = nn.MultiheadAttention(hidden_size, self.num_heads, batch_first=True, **factory)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(hidden_size, eps=NORM_EPS, **factory) for _ in range(3))
        self.proj = nn.Parameter(torch.empty(hidden_size, hidden_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal queries and kv_proj of deviation 0.02, proj normal with 1/sqrt(D); the rest as it does
        itself."""
        super().reset_parameters()
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.normal_(self.proj, std=self.hidden_size**-0.5)
        if isinstance(self.kv_proj, nn.Linear):
            nn.init.trunc_normal_(self.kv_proj.weight, std=0.02)

    def output_grid(self, height: int, width: int) -> tuple[int, int]:
        return self.query_grid

    @property
    def _reader(self) -> nn.Module:
        return self.attn.out_proj if isinstance(self.kv_proj, nn.Identity) else self.kv_proj

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        height, width = levels[0].shape[1:3]
        value = self.ln_kv(self.kv_proj(levels[0].flatten(1, 2)))  # (tiles, H*W, D)
        key = value + sine_positions(height, width, self.hidden_size, value)
        query = self.ln_q(self.query).expand(len(value), -1, -1)  # (tiles, n, D)
        out, _ = self.attn(query, key, value, need_weights=False)
        return self.ln_post(out) @ self.proj  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.feature_dims}, hidden_size={self.hidden_size}, query_grid={self.query_grid}"


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """(H*W, channels) in the dtype and on the device of ``like``: sines and cosines of x, then of y, a quarter of the
    channels each, with wavelengths from 2 pi to 20000 pi."""
    quarter = channels // 4
    frequency = 10000.0 ** -(torch.arange(quarter, device=like.device, dtype=torch.float64) / quarter)

    def encoded(size: int) -> Tensor:
        angle = torch.arange(size, device=like.device)[:, None] * frequency  # (size, quarter)
        return torch.cat([angle.sin(), angle.cos()], -1)

    x = encoded(width).expand(height, -1, -1)  # (H, W, channels / 2)
    y = encoded(height)[:, None].expand(-1, width, -1)
    return torch.cat([x, y], -1).flatten(0, 1).to(like.dtype)
