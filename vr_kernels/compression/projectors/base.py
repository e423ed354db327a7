"""``Projector``: what every way from an encoder's features to the language model's tokens has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vr_kernels.compression.projectors._windows import window_index
from vr_kernels.nn._linear import check_dtype
from vr_kernels.nn._sizes import as_levels, check_positive, level_widths
from vr_kernels.nn._token_tables import check_sizes
from vr_kernels.ops._arguments import Arguments, remember, signatures


class Projected(NamedTuple):
    """The tokens of a batch of tiles, and where each of them comes from."""

    tokens: Tensor  # (tiles, n, D): cells in raster order, the tokens of one cell next to each other
    grid: tuple[int, int]  # (n_h, n_w) cells of a tile; n = n_h * n_w * tokens_per_cell
    window_index: Tensor  # (n, K) int64: rows y*W + x of one tile's features that each token stands for, -1 = absent


class Projector(nn.Module, ABC):
    """One encoder's features in, tokens of the language model's width out: one call for every method.

    A token stands for a window of features, the window of adaptive pooling: ``Projected.window_index`` is what
    ``window_index_from_grid`` says of the grid, whatever the method reads. A grid that the window does not divide has
    the next larger number of cells, and ragged windows, where the method allows it.

    Args:
        feature_dims: width of each level, in the order in which ``forward`` gets them; an int for a single level.
        hidden_size: D, width of the language model.
        window: (s_h, s_w), how many features a token stands for along each axis.

    Raises:
        ValueError: sizes below one; more levels than the method reads. TypeError: a size that is no int.
    """

    reads_levels: ClassVar[bool] = False  # whether the method fuses several levels; one is always allowed
    tokens_per_cell: int = 1  # how many tokens follow each other in one cell of the grid

    def __init__(self, feature_dims: int | Sequence[int], hidden_size: int, window: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        arguments = Arguments(type(self).__name__)
        dims = level_widths(arguments.operator, "feature_dims", feature_dims)
        if len(dims) > 1 and not self.reads_levels:
            raise arguments.error(f"feature_dims is {dims}, {len(dims)} levels; this projector reads one")
        check_positive(arguments.operator, hidden_size=hidden_size)
        self.feature_dims, self.hidden_size = dims, hidden_size
        check_sizes(arguments, "window", window)
        self.window = (window[0], window[1])

    def reset_parameters(self) -> None:
        """Start anew, every layer as it does itself: what a projector built on the meta device needs."""
        for module in reversed([*self.modules()][1:]):  # inner layers first, for an outer one may know better
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()

    @property
    def num_levels(self) -> int:
        """How many levels ``forward`` takes."""
        return len(self.feature_dims)

    @classmethod
    def default_levels(cls, depth: int, **options: Any) -> tuple[int, ...]:
        """Which ``hidden_states`` of an encoder of ``depth`` blocks the method reads (0 is the embedding output).

        ``options`` are those that it is built with, of which STF's ``variant`` counts. One level is the output of the
        last block but one, ``hidden_states[-2]``, as LLaVA takes it.
        """
        return (depth - 1,)

    def output_grid(self, height: int, width: int) -> tuple[int, int]:
        """(n_h, n_w) of the tokens of an (height, width) grid of features: arithmetic alone.

        Raises:
            ValueError: a grid that the window does not divide, where the method has no ragged windows.
        """
        return -(-height // self.window[0]), -(-width // self.window[1])

    def forward(self, features: Tensor | Sequence[Tensor]) -> Projected:
        """Turn the features of each tile into tokens.

        Args:
            features: one tensor a level, (tiles, H, W, D_l), widths as ``feature_dims``, any strides; a tensor alone is
                one level.

        Returns:
            ``Projected``: tokens (tiles, n, D) in the dtype of the features.

        Raises:
            ValueError: levels of other widths or grids; a grid that the window does not divide, where the method has
                no ragged windows. TypeError: a level that is no tensor, or in another dtype than the weights (autocast
                converts it).
        """
        levels = as_levels(type(self).__name__, features)
        _check_levels(type(self).__name__, self.feature_dims, signatures(*levels))
        check_dtype(type(self).__name__, "features[0]", levels[0], self._reader)
        height, width = levels[0].shape[1:3]
        grid = self.output_grid(height, width)
        tokens = self.project(levels, grid)
        index = window_index(levels[0], grid)  # (n_h * n_w, K)
        return Projected(tokens, grid, index.repeat_interleave(self.tokens_per_cell, 0))

    @property
    def _reader(self) -> nn.Module | None:
        """The Linear whose dtype the features must have; None where the modules that read them say so themselves."""
        return None

    @abstractmethod
    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Checked levels (tiles, H, W, D_l) -> tokens (tiles, n, D); ``grid`` is ``output_grid(H, W)``."""

    def extra_repr(self) -> str:
        return f"{self.feature_dims}, hidden_size={self.hidden_size}, window={self.window}"


class DividingProjector(Projector, ABC):
    """A projector whose windows are whole: the grid must be a multiple of the window."""

    def output_grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.window[0] != 0 or width % self.window[1] != 0:
            raise ValueError(
                f"{type(self).__name__}: features have grid ({height}, {width}); both must be multiples of the window "
                f"{self.window}"
            )
        return super().output_grid(height, width)


@remember
def _check_levels(operator: str, feature_dims: tuple[int, ...], given: tuple[Any, ...]) -> None:
    arguments = Arguments(operator, "features[0]")
    if len(given) != len(feature_dims):
        raise arguments.error(
            f"features holds {len(given)} levels; it must hold {len(feature_dims)}, of {feature_dims}"
        )
    first = arguments.tensor("features[0]", given[0])
    arguments.floating("features[0]", first)
    arguments.rank("features[0]", first, {4: "(tiles, H, W, D)"})
    levels = arguments.levels("features", given, first)
    widths = tuple(level.shape[-1] for level in levels)
    if widths != feature_dims:
        raise arguments.error(
            f"features have widths {widths}, feature_dims is {feature_dims}; give one tensor a level, in that order, "
            "channels last"
        )
    if first.shape[1] * first.shape[2] == 0:
        raise arguments.error(f"features have grid {first.shape[1:3]}; both sizes must be at least 1")
