"""Rows of the stream (B, T, D), read and written back by a layer that touches no other row."""

from __future__ import annotations

from torch import Tensor

from vr_kernels.nn.vision_token_map import VisionTokenMap


def check_stream(operation: str, hidden_states: Tensor, vision_map: VisionTokenMap, hidden_size: int) -> None:
    """Refuse a stream that is not (B, T, D), or for whose B, T or device the map was not made."""
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


def read_rows(hidden_states: Tensor, rows: Tensor) -> Tensor:
    """hidden_states (B, T, D), rows (V,) of b*T + t -> (V, D)."""
    return hidden_states.flatten(0, 1).index_select(0, rows)


def add_to_rows(hidden_states: Tensor, rows: Tensor, update: Tensor) -> Tensor:
    """A new stream with ``update`` (V, D) added to ``rows``, in the stream's dtype; other rows bit for bit."""
    stream = hidden_states.flatten(0, 1)  # (B*T, D)
    # x - (0 - u) is x + u, except that adding a zero of either sign leaves the bits of x = -0.0 as they are.
    summed = stream.index_select(0, rows) - (0 - update.to(stream.dtype))
    return stream.index_copy(0, rows, summed).view(hidden_states.shape)
