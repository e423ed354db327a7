"""LLaVA-STF's token fusion: several encoder levels into one grid, the grid's neighbours into fewer tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vr_kernels.nn._patch_linear import PatchLinear, load_layers
from vr_kernels.nn._sizes import check_positive, check_tensor, level_widths, levels_of

VARIANTS = ("paper", "code")


def fusion_levels(depth: int = 24, count: int = 8, *, variant: str = "paper") -> tuple[int, ...]:
    """Which ``hidden_states`` of an encoder MBTF fuses, in the order of its weights (0 is the embedding output).

    The paper takes every ``depth/count``-th block, ascending; its code takes the last but one block for the last, and
    goes down from there.

    Raises:
        ValueError: a count that does not divide depth; an unknown variant. TypeError: either is no int.

    >>> fusion_levels(), fusion_levels(variant="code")
    ((3, 6, 9, 12, 15, 18, 21, 24), (23, 21, 18, 15, 12, 9, 6, 3))
    """
    _check_variant("fusion_levels", variant)
    check_positive("fusion_levels", depth=depth, count=count)
    if depth % count != 0:
        raise ValueError(f"fusion_levels: count is {count}; it must be a positive divisor of depth, {depth}")
    step = depth // count
    ascending = tuple(range(step, depth + 1, step))
    return ascending if variant == "paper" else (depth - 1, *ascending[-2::-1])


class MultiBlockTokenFusion(nn.Module):
    """MBTF: the levels of an encoder fused into one grid by two 1x1 convolutions (LLaVA-STF §3.3, Eq. 1, Table 1a).

    ``conv2(gelu(conv1(concat(levels))))``, with a GELU after conv2 too in the paper's variant. The levels come in the
    order of ``fusion_levels``, and are read where they lie.

    Args:
        level_dims: width of each level, in the order in which ``forward`` gets them; an int for a single level.
        hidden_dim: width between the convolutions; None: four times the first level's.
        out_dim: C; None: the first level's width.
        variant: "paper" (GELU after both) or "code" (none after the second).
        backend: passed on to ``vr_kernels.patch_linear``.

    Raises:
        ValueError: widths below one; no level; an unknown variant. TypeError: a width that is no int.

    >>> mbtf = MultiBlockTokenFusion((32,) * 8)
    >>> mbtf([torch.randn(1, 6, 6, 32) for _ in range(8)]).shape
    torch.Size([1, 6, 6, 32])
    """

    def __init__(
        self,
        level_dims: int | Sequence[int],
        hidden_dim: int | None = None,
        out_dim: int | None = None,
        *,
        variant: str = "paper",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_variant("MultiBlockTokenFusion", variant)
        dims = level_widths("MultiBlockTokenFusion", "level_dims", level_dims)
        hidden_dim = 4 * dims[0] if hidden_dim is None else hidden_dim
        out_dim = dims[0] if out_dim is None else out_dim
        check_positive("MultiBlockTokenFusion", hidden_dim=hidden_dim, out_dim=out_dim)
        self.level_dims, self.out_dim, self.variant = dims, out_dim, variant
        last = "gelu" if variant == "paper" else None
        self.conv1 = PatchLinear(sum(dims), hidden_dim, activation="gelu", backend=backend, device=device, dtype=dtype)
        self.conv2 = PatchLinear(hidden_dim, out_dim, activation=last, backend=backend, device=device, dtype=dtype)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """L levels (B, H, W, D_l), widths as ``level_dims``, any strides -> (B, H, W, out_dim)."""
        levels = levels_of("MultiBlockTokenFusion", features, self.level_dims, "level_dims")
        return self.conv2(self.conv1(levels))  # type: ignore[no-any-return]

    def load_layers_(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> MultiBlockTokenFusion:
        """Take the weights of two 1x1 ``nn.Conv2d`` or two ``nn.Linear`` under ``prefix``, in order, by any names.

        Raises:
            ValueError: what does not fit, before anything is changed.
        """
        load_layers("MultiBlockTokenFusion.load_layers_", (self.conv1, self.conv2), state_dict, prefix)
        return self

    def extra_repr(self) -> str:
        return f"level_dims={self.level_dims}, variant={self.variant!r}"


class SpatialTokenFusion(nn.Module):
    """STF: k x k neighbours fused into E tokens of the LLM's width (LLaVA-STF §3.4, Eq. 2, Table 1b).

    The first convolution is k x k with stride k. Its output channels become E tokens of contiguous channels, and the
    1x1 convolutions take each token by itself. *Paper*: C -> k*k*C, then to ``hidden_dim``, then to ``out_dim``, a GELU
    after each. *Code*: C -> ``hidden_dim`` at once, GELU, then to ``out_dim``, no last GELU.

    Args:
        in_dim: C, width of the grid's features. out_dim: width of the language model.
        kernel_size: k. tokens: E, how many tokens a window becomes; it divides the first convolution's output channels.
        hidden_dim: None: 4*k*k*C, the 16384 of LLaVA-1.5.
        variant: "paper" or "code". backend: passed on to ``vr_kernels.patch_linear``.

    Raises:
        ValueError: sizes below one; tokens that do not divide the first convolution's channels; an unknown variant.
        TypeError: a size that is no int.

    >>> stf = SpatialTokenFusion(16, 48, kernel_size=2)
    >>> stf(torch.randn(1, 6, 6, 16)).shape, stf.output_grid(6, 6)
    (torch.Size([1, 9, 48]), (3, 3, 1))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: int = 2,
        tokens: int = 1,
        hidden_dim: int | None = None,
        variant: str = "paper",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_variant("SpatialTokenFusion", variant)
        check_positive("SpatialTokenFusion", in_dim=in_dim, out_dim=out_dim, kernel_size=kernel_size, tokens=tokens)
        fused = kernel_size**2 * in_dim
        hidden_dim = 4 * fused if hidden_dim is None else hidden_dim
        check_positive("SpatialTokenFusion", hidden_dim=hidden_dim)
        first = fused if variant == "paper" else hidden_dim
        if first % tokens != 0:
            raise ValueError(
                f"SpatialTokenFusion: tokens is {tokens}; it must divide the {first} channels of the first convolution"
            )
        self.in_dim, self.out_dim, self.variant = in_dim, out_dim, variant
        self.kernel_size, self.tokens = kernel_size, tokens
        widths = [first // tokens, *([hidden_dim] if variant == "paper" else []), out_dim]
        self.conv1 = PatchLinear(
            in_dim, first, kernel_size=kernel_size, activation="gelu", backend=backend, device=device, dtype=dtype
        )
        activation = "gelu" if variant == "paper" else None
        for number, (width, following) in enumerate(pairwise(widths), start=2):
            layer = PatchLinear(width, following, activation=activation, backend=backend, device=device, dtype=dtype)
            self.add_module(f"conv{number}", layer)

    def _layers(self) -> list[PatchLinear]:
        return [layer for layer in self.children() if isinstance(layer, PatchLinear)]

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, W, in_dim), any strides -> (B, H/k * W/k * E, out_dim), windows in raster order, E tokens each."""
        first, *others = self._layers()
        x = first(features)  # (B, H/k, W/k, E * width)
        x = x.unflatten(-1, (self.tokens, -1)).flatten(2, 3)  # (B, H/k, W/k * E, width)
        for layer in others:
            x = layer(x)
        return x.flatten(1, 2)  # type: ignore[no-any-return]

    def output_grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(n_h, n_w, E) of the tokens of an (height, width) grid: ``out.unflatten(1, output_grid(H, W))``."""
        return height // self.kernel_size, width // self.kernel_size, self.tokens

    def load_layers_(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> SpatialTokenFusion:
        """Take the weights of ``nn.Conv2d`` or ``nn.Linear`` layers under ``prefix``, in order, by any names.

        The first may be (O, C, k, k), or (O, C*k*k) flattened as a Conv2d weight is, channel-major.

        Raises:
            ValueError: what does not fit, before anything is changed.
        """
        load_layers("SpatialTokenFusion.load_layers_", self._layers(), state_dict, prefix)
        return self

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, tokens={self.tokens}, variant={self.variant!r}"


class TokenAvgPool(nn.Module):
    """LLaVA-STF's baseline AvgPool: the mean of k x k neighbours (§4.3.3). No parameters.

    >>> TokenAvgPool(2)(torch.arange(16.0).view(1, 4, 4, 1)).flatten()
    tensor([ 2.5000,  4.5000, 10.5000, 12.5000])
    """

    def __init__(self, kernel_size: int = 2) -> None:
        super().__init__()
        check_positive("TokenAvgPool", kernel_size=kernel_size)
        self.kernel_size = kernel_size

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/k * W/k, C); the mean is taken in float32 at least."""
        windows = _windows("TokenAvgPool", features, self.kernel_size)  # (B, n_h, n_w, C, k, k)
        return windows.mean((-2, -1)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


class TokenConcat(nn.Module):
    """LLaVA-STF's baseline TokenConcat: k x k neighbours side by side in one token (§4.3.3). No parameters.

    Channels are ordered (c, y, x), so that a Linear on top is a k x k convolution.

    >>> TokenConcat(2)(torch.arange(16.0).view(1, 4, 4, 1))[0, 0]
    tensor([0., 1., 4., 5.])
    """

    def __init__(self, kernel_size: int = 2) -> None:
        super().__init__()
        check_positive("TokenConcat", kernel_size=kernel_size)
        self.kernel_size = kernel_size

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/k * W/k, C*k*k)."""
        return _windows("TokenConcat", features, self.kernel_size).flatten(3).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


def _windows(operation: str, features: Tensor, k: int) -> Tensor:
    """(B, H, W, C) -> (B, H/k, W/k, C, k, k), a view."""
    check_tensor(operation, "features", features)
    if features.dim() != 4 or features.shape[1] % k != 0 or features.shape[2] % k != 0:
        raise ValueError(
            f"{operation}: features have shape {tuple(features.shape)}; they must be (B, H, W, C), "
            f"H and W multiples of {k}"
        )
    windows: Tensor = features.unflatten(2, (-1, k)).unflatten(1, (-1, k))  # (B, n_h, k, n_w, k, C)
    return windows.permute(0, 1, 3, 5, 2, 4)


def _check_variant(operation: str, variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f'{operation}: variant is {variant!r}; it must be "paper" or "code"')
