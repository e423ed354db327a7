"""Sequences of tokens: B of one length side by side, or S of any length packed end to end between ``cu_seqlens``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature, is_readable


def check_cu_seqlens(arguments: Arguments, value: Any, query: Signature, sequences: int | None = None) -> int:
    """The signature of a ``cu_seqlens`` (S+1,); returns S."""
    got = arguments.index("cu_seqlens", value, query)
    if len(got.shape) != 1 or got.shape[0] == 0:
        raise arguments.error(f"cu_seqlens has shape {got.shape}; it must be (S + 1,)")
    if sequences is not None and got.shape[0] != sequences + 1:
        raise arguments.error(
            f"cu_seqlens has shape {got.shape}, {arguments.query} has {sequences} sequences; "
            f"it must be ({sequences + 1},)"
        )
    return got.shape[0] - 1


def check_cu_seqlens_values(operator: str, cu_seqlens: Tensor | None, tokens: int) -> None:
    """Refuse bounds that do not rise from 0 to the tokens. Reads data: plain CPU tensors, untraced code only."""
    if cu_seqlens is None or not is_readable(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(
            f"{operator}: cu_seqlens runs from {bounds[0]} to {bounds[-1]}; it must run from 0 to {tokens}, the tokens"
        )
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop < start:
            raise ValueError(
                f"{operator}: cu_seqlens[{i + 1}] is {stop}, cu_seqlens[{i}] is {start}; it must not decrease"
            )


def sequence_of_tokens(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The sequence that each token belongs to, (T,) int64; a token outside every sequence gets -1 or S."""
    begin = cu_seqlens.to(torch.int64).clamp(0, tokens)
    begun = begin.new_zeros(tokens + 1).scatter_add(0, begin, torch.ones_like(begin))  # sequences that begin here
    return begun.cumsum(0)[:tokens] - 1


def spans(cu_seqlens: Tensor) -> Iterator[tuple[int, slice]]:
    """The number and the tokens of each sequence that has any."""
    bounds = cu_seqlens.tolist()
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop > start:
            yield i, slice(start, stop)
