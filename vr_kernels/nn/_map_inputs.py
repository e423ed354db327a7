"""The stream and the features that a ``VisionTokenMap`` was made for: their checks, and the features' two forms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vr_kernels.nn._sizes import check_tensor, check_type, levels_of
from vr_kernels.nn.vision_token_map import VisionTokenMap


def check_stream(operation: str, hidden_states: Tensor, vision_map: VisionTokenMap, hidden_size: int) -> None:
    """Refuse a stream that is not (B, T, D), or for whose B, T or device the map was not made."""
    check_tensor(operation, "hidden_states", hidden_states)
    check_type(operation, "vision_map", vision_map, VisionTokenMap)
    shape = tuple(hidden_states.shape)
    if len(shape) != 3 or shape[2] != hidden_size:
        raise ValueError(f"{operation}: hidden_states has shape {shape}; it must be (B, T, D) with D = {hidden_size}")
    if shape[:2] != tuple(vision_map.sequence_shape):
        raise ValueError(
            f"{operation}: hidden_states has (B, T) = {shape[:2]}, the map was made for {vision_map.sequence_shape}; "
            "the vision tokens stand elsewhere (decoding steps have none: leave the block out)"
        )
    if hidden_states.device != vision_map.rows.device:
        raise ValueError(
            f"{operation}: hidden_states is on {hidden_states.device}, the map is on {vision_map.rows.device}; "
            "move the map with to()"
        )


def newline_rows_of(operation: str, vision_map: VisionTokenMap) -> Tensor | None:
    """The map's, which only a batch without an image may lack: a map that was made without them knows of none."""
    if vision_map.newline_rows is None and len(vision_map.rows) > 0:
        raise ValueError(
            f"{operation}: config.newline_keys is True, and the map has no newline_rows; give it a table (I, M), of "
            "M = 0 where there is no newline"
        )
    return vision_map.newline_rows


def checked_levels(
    operation: str,
    vision_map: VisionTokenMap,
    features: Tensor | Sequence[Tensor] | None,
    feature_dims: tuple[int, ...],
    like: Tensor,
) -> list[Tensor]:
    """One tensor a level, (M, D_l) or (tiles, H, W, D_l); without features, a table that nobody reads."""
    if features is None:
        if len(vision_map.rows) > 0:
            raise ValueError(
                f"{operation}: features is None, and the map has {len(vision_map.rows)} vision tokens; give one tensor "
                "a level (None is for a batch without an image)"
            )
        return [like.new_zeros(vision_map.feature_rows, width) for width in feature_dims]
    levels = levels_of(operation, features, feature_dims)
    for i, level in enumerate(levels):
        check_leading_shape(operation, f"features[{i}]", vision_map, tuple(level.shape[:-1]))
    return levels


def check_leading_shape(operation: str, name: str, vision_map: VisionTokenMap, shape: tuple[int, ...]) -> None:
    """Refuse what is neither the map's table (M,) nor its tiles (tiles, H, W)."""
    grid = None if vision_map.feature_grid is None else (vision_map.num_tiles, *vision_map.feature_grid)
    if shape != grid and shape != (vision_map.feature_rows,):
        allowed = f"({vision_map.feature_rows},)" + ("" if grid is None else f" or {grid}")
        raise ValueError(f"{operation}: {name} has leading shape {shape}; the map was made for {allowed}")


def check_whole_windows(operation: str, vision_map: VisionTokenMap, window: tuple[int, int] | None) -> None:
    """Refuse a map without a grid, and, where ``window`` is given, one whose windows are not all of that size."""
    if vision_map.grid is None or vision_map.feature_grid is None:
        raise ValueError(f"{operation}: the map has no grid; build it with from_grid or from_slots")
    if window is None:
        return
    whole = tuple(n * size for n, size in zip(vision_map.grid, window, strict=True))
    if whole != tuple(vision_map.feature_grid):
        raise ValueError(
            f"{operation}: the map has feature_grid {tuple(vision_map.feature_grid)} and grid "
            f"{tuple(vision_map.grid)}; with window {window} feature_grid must be {whole}"
        )


def refuse_unread(operation: str, **given: Tensor | None) -> None:
    """Refuse what a block takes for the sake of a common call, and would not read."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{operation}: {name} is given, and this block reads none; it must be None")


def as_table(tensor: Tensor, trailing: int) -> Tensor:
    """(M, ...): a view where the tiles lie without gaps."""
    return tensor if tensor.dim() == 1 + trailing else tensor.flatten(0, 2)


def as_tiles(vision_map: VisionTokenMap, tensor: Tensor, trailing: int) -> Tensor:
    """(tiles, H, W, ...): always a view."""
    if tensor.dim() == 3 + trailing or vision_map.feature_grid is None:
        return tensor
    return tensor.view(vision_map.num_tiles, *vision_map.feature_grid, *tensor.shape[1:])
