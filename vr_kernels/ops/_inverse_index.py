"""A window index turned round: who reads each feature row."""

from __future__ import annotations

import torch
from torch import Tensor


def readers_of_rows(window_index: Tensor, row_count: int) -> tuple[Tensor, Tensor]:
    """The numbers window * K + slot of an (N, K) index, ordered by the row they read, and each row's first (M + 1,).

    Row m's readers are ``readers[first[m]:first[m + 1]]``, in rising order. Absent slots and rows outside the table
    come after the last row's.

    >>> readers, first = readers_of_rows(torch.tensor([[1, 0], [-1, 1]]), 3)
    >>> [readers[start:end].tolist() for start, end in zip(first, first[1:])]
    [[1], [0, 3], []]
    """
    rows = window_index.reshape(-1).to(torch.int64)
    ordered, readers = torch.where(rows < 0, row_count, rows).sort(stable=True)
    return readers, torch.searchsorted(ordered, torch.arange(row_count + 1, device=rows.device))
