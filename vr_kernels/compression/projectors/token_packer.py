"""``TokenPackerProjector``: coarse tokens attend to their own windows of several levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.compression.projectors._windows import window_index
from vr_kernels.compression.projectors.base import Projector
from vr_kernels.nn._patch_linear import PatchLinear
from vr_kernels.nn._sizes import check_positive
from vr_kernels.ops import local_attention
from vr_kernels.ops._arguments import Arguments

NORM_EPS = 1e-6


class TokenPackerProjector(Projector):
    """TokenPacker (arXiv:2407.02392): each low-resolution token attends to the window that it stands for.

    The query is the last level, resized bilinearly; keys and values come from all levels by a two-layer MLP each. A
    LayerNorm (eps 1e-6) follows each of the three, and then the projections of an 8-head attention. Its output goes
    through a two-layer MLP, with no residual. The LayerNorm stands between a feature and its key, so that the absorbed
    form of ``vr_kernels.local_cross_attention`` does not apply: ``vr_kernels.local_attention`` reads given K and V.

    Args:
        embed_dim: E, width of the attention; None: the last level's.
        num_heads: of the attention; it divides embed_dim.
        backend: passed on to ``vr_kernels.local_attention``.

    >>> TokenPackerProjector((32,) * 4, 48)([torch.randn(1, 6, 6, 32) for _ in range(4)]).tokens.shape
    torch.Size([1, 9, 48])
    """

    reads_levels = True

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        embed_dim: int | None = None,
        num_heads: int = 8,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window)
        width = self.feature_dims[-1] if embed_dim is None else embed_dim
        check_positive(type(self).__name__, embed_dim=width, num_heads=num_heads)
        if width % num_heads != 0:
            raise Arguments(type(self).__name__).error(
                f"embed_dim is {width}, num_heads is {num_heads}; num_heads must be a positive divisor of embed_dim"
            )
        self.embed_dim, self.num_heads, self.backend = width, num_heads, backend

        def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        def features_mlp() -> nn.Sequential:
            first = PatchLinear(sum(self.feature_dims), width, activation="gelu", device=device, dtype=dtype)
            return nn.Sequential(first, linear(width, width))

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=NORM_EPS, device=device, dtype=dtype)

        self.query_in, self.query_norm = linear(self.feature_dims[-1], width, bias=False), norm()
        self.key_in, self.key_norm = features_mlp(), norm()
        self.value_in, self.value_norm = features_mlp(), norm()
        self.query_proj, self.key_proj, self.value_proj = (linear(width, width) for _ in range(3))
        self.out_proj = linear(width, width)
        self.mlp = nn.Sequential(linear(width, hidden_size), nn.GELU(), linear(hidden_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As TokenPacker: truncated normal weights of deviation 0.02, but Xavier-uniform W_q, W_k and W_v as
        ``nn.MultiheadAttention``; zero biases, identity norms."""
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, (nn.Linear, PatchLinear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # There the three are one matrix of 3E rows, whose bound is smaller than that of one alone.
        bound = (6 / (4 * self.embed_dim)) ** 0.5
        for projection in (self.query_proj, self.key_proj, self.value_proj):
            nn.init.uniform_(projection.weight, -bound, bound)

    @classmethod
    def default_levels(cls, depth: int, **options: Any) -> tuple[int, ...]:
        """``hidden_states`` 12, 16, 22 and 23 of 24 blocks; of another depth the same fractions, each once."""
        levels = (depth // 2, depth * 2 // 3, depth - 2, depth - 1)
        return tuple(sorted({max(level, 1) for level in levels}))

    @property
    def _reader(self) -> nn.Module:
        return self.query_in

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        query = self.query_proj(self.query_norm(self.query_in(_resized(levels[-1], grid))))  # (tiles, n_h, n_w, E)
        key = self.key_proj(self.key_norm(self.key_in(levels)))  # (tiles, H, W, E)
        value = self.value_proj(self.value_norm(self.value_in(levels)))
        out = self._attend(*(x.unflatten(-1, (self.num_heads, -1)) for x in (query, key, value)))  # (..., h, d)
        tokens = self.mlp(self.out_proj(out.flatten(-2)))  # (tiles * n, D)
        return tokens.view(len(query), grid[0] * grid[1], self.hidden_size)  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (tiles, n_h, n_w, h, d), key and value (tiles, H, W, h, d) -> (tiles * n_h * n_w, h, d)."""
        (tiles, *grid), sizes = query.shape[:3], key.shape[1:3]
        if all(size % n == 0 for size, n in zip(sizes, grid, strict=True)):
            out = local_attention(query, key, value, backend=self.backend)
            assert isinstance(out, Tensor)
            return out.flatten(0, 2)
        index = window_index(key, (grid[0], grid[1]), batch=tiles)  # (tiles * n, K)
        query, key, value = (x.flatten(0, 2) for x in (query, key, value))
        out = local_attention(query, key, value, window_index=index, backend=self.backend)
        assert isinstance(out, Tensor)
        return out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, embed_dim={self.embed_dim}, num_heads={self.num_heads}"


def _resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(tiles, H, W, C) -> (tiles, n_h, n_w, C), bilinear between the four nearest features, in float32 at least."""
    wide = torch.promote_types(features.dtype, torch.float32)
    resized = F.interpolate(features.to(wide).movedim(-1, 1), grid, mode="bilinear", align_corners=False)
    return resized.movedim(1, -1).to(features.dtype)
