"""The definition of the token scatter, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._tokens import read_rows


def scatter_add_tokens(hidden_states: Tensor, token_rows: Tensor, update: Tensor) -> Tensor:
    """hidden_states (B, T, D) with update (I, N, D) added to its rows token_rows (I, N)."""
    stream = hidden_states.flatten(0, 1)  # (M, D)
    # x - (0 - u) is x + u, but for the sign of a zero: it leaves -0 where 0 is added, as -0 + 0 would not.
    rows = read_rows(stream, token_rows) - (0 - update)
    # One row past the end takes what padding carries.
    present = (token_rows >= 0) & (token_rows < stream.shape[0])
    index = token_rows.where(present, stream.shape[0]).long()
    longer = torch.cat([stream, stream.new_zeros(1, stream.shape[1])])
    return longer.index_put((index,), rows)[:-1].view(hidden_states.shape)
