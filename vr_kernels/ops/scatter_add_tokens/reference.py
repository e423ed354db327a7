"""The definition of the token scatter, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def scatter_add_tokens(hidden_states: Tensor, token_rows: Tensor, update: Tensor) -> Tensor:
    """hidden_states (B, T, D) with update (I, N, D) added to its rows token_rows (I, N)."""
    stream = hidden_states.flatten(0, 1)  # (M, D)
    if stream.shape[0] == 0:
        return hidden_states + update[:0].sum()
    present = (token_rows >= 0) & (token_rows < stream.shape[0])
    # x - (0 - u) is x + u, but for the sign of a zero: it leaves -0 where 0 is added, as -0 + 0 would not. So padding
    # may take nothing from row 0.
    taken = (0 - update).masked_fill(~present[..., None], 0)
    index = token_rows.where(present, 0).flatten()
    return stream.index_add(0, index, taken.flatten(0, 1), alpha=-1).view(hidden_states.shape)
