"""Attention received, a block of rows at a time: one GEMM makes its scores, one pass over them the columns' sums.

A block holds all columns of its rows, so the same scores give the log-sum-exp. Plain PyTorch unless a backend brings
its own pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vr_kernels.ops._sequences import check_cu_seqlens_values, spans
from vr_kernels.ops._workspace import workspace

# Scores of a block. On the CPU 4 MB of float32: of 2^17 to 2^21 the fastest at 729 to 4,096 tokens.
BLOCK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 25}


class ScorePass(Protocol):
    """What is done to the scores (kv heads, groups, rows, columns) of a block; float32 or float64, contiguous.

    With ``first_row`` row i sees columns up to first_row + i only: the scores hold no column that no row sees.
    ``lse`` is (kv heads, groups, rows), None for the scores' own; ``columns`` and ``grad`` are (kv heads, groups,
    columns). All have unit inner stride and heads a constant stride apart.
    """

    def forward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, columns: Tensor) -> None:
        """columns += the sum over the rows of p = exp(scores - lse). Spoils the scores."""

    def backward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, grad: Tensor) -> Tensor:
        """Turns the scores into their gradient p (grad - t), or p grad where lse is given; returns t = sum p grad."""


class TorchPass:
    """``ScorePass`` in plain PyTorch."""

    def forward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, columns: Tensor) -> None:
        columns += _weights(scores, first_row, lse).sum(-2)

    def backward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, grad: Tensor) -> Tensor:
        weights, grad = _weights(scores, first_row, lse), grad.unsqueeze(-2)
        total = (weights * grad).sum(-1)
        torch.mul(weights, grad - total.unsqueeze(-1) if lse is None else grad, out=scores)
        return total


def _weights(scores: Tensor, first_row: int | None, lse: Tensor | None) -> Tensor:
    if first_row is not None:
        rows, columns = scores.shape[-2:]
        hidden = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).triu_(first_row + 1)
        scores.masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1) if lse is None else scores.sub_(lse.unsqueeze(-1)).exp_()


_TORCH_PASS = TorchPass()


@dataclass(frozen=True)
class _Heads:
    """Some kv heads of one sequence with the query heads that share them, in the scores' dtype and dense."""

    query: Tensor  # (kv heads, groups, n, d), times the scale
    key: Tensor  # (kv heads, n, d)

    @classmethod
    def load(cls, query: Tensor, key: Tensor, scale: float) -> _Heads:
        """From query (n, h, d) and key (n, h_kv, d): copies, which are read once a block of rows."""
        (tokens, heads, width), kv_heads = query.shape, key.shape[1]
        dtype, groups = torch.promote_types(query.dtype, torch.float32), heads // kv_heads
        q = workspace("received query", (kv_heads, groups, tokens, width), dtype, query.device)
        q.copy_(query.transpose(0, 1).unflatten(0, (kv_heads, groups))).mul_(scale)
        k = workspace("received key", (kv_heads, tokens, width), dtype, key.device)
        return cls(q, k.copy_(key.transpose(0, 1)))

    def rows(self, rows: slice) -> Tensor:
        """(kv heads, groups * rows, d)"""
        return self.query[:, :, rows].flatten(1, 2)

    def scores(self, rows: slice, columns: int) -> Tensor:
        """(kv heads, groups, rows, columns) in reused memory."""
        q = self.rows(rows)
        out = workspace("received scores", (*q.shape[:2], columns), q.dtype, q.device)
        torch.bmm(q, self.key[:, :columns].mT, out=out)
        return out.view(q.shape[0], self.query.shape[1], -1, columns)


def _sequences(tokens: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[Any, Any]]:
    """An index of each sequence into tokens (B, N, ...) or (T, ...), and one into columns (B, h, N) or (h, T)."""
    if cu_seqlens is not None:
        yield from ((span, (slice(None), span)) for _, span in spans(cu_seqlens))
    elif tokens.shape[1] > 0:
        yield from ((i, i) for i in range(tokens.shape[0]))


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, list[slice]]]:
    """kv heads that are scored together, their query heads, and the blocks of rows; query (n, h, d)."""
    (tokens, heads, _), kv_heads = query.shape, key.shape[1]
    size, groups = BLOCK_SCORES[query.device.type], heads // kv_heads
    together = max(1, size // (groups * tokens * tokens))
    rows = max(16, size // (groups * tokens))
    row_blocks = [slice(i, min(i + rows, tokens)) for i in range(0, tokens, rows)]
    for first in range(0, kv_heads, together):
        last = min(first + together, kv_heads)
        yield slice(first, last), slice(first * groups, last * groups), row_blocks


def forward(
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
    score_pass: ScorePass = _TORCH_PASS,
) -> Tensor:
    """The sum over the rows of every head's weights, (B, h, N) or (h, T)."""
    *batch, tokens, heads, _ = query.shape
    check_cu_seqlens_values("attention_received", cu_seqlens, tokens)
    columns = query.new_zeros(*batch, heads, tokens, dtype=torch.promote_types(query.dtype, torch.float32))
    for own, own_columns in _sequences(query, cu_seqlens):
        q, k, sums = query[own], key[own], columns[own_columns]  # (n, h, d), (n, h_kv, d), (h, n)
        for kv_heads, some_heads, row_blocks in _blocks(q, k):
            block = _Heads.load(q[:, some_heads], k[:, kv_heads], scale)
            block_lse = None if lse is None else _by_head(lse[own][:, some_heads], block.query)
            received = columns.new_zeros(block.query.shape[:-1])  # (kv heads, groups, n)
            for rows in row_blocks:
                visible = rows.stop if causal else q.shape[0]
                score_pass.forward(
                    block.scores(rows, visible),
                    rows.start if causal else None,
                    None if block_lse is None else block_lse[..., rows],
                    received[..., :visible],
                )
            sums[some_heads] = received.flatten(0, 1)
    return columns


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
    needs: Sequence[bool],
    score_pass: ScorePass = _TORCH_PASS,
) -> list[Tensor]:
    """Gradients of query, key and lse; empty where ``needs`` says no. The scores of each block are made anew."""
    needs_query, needs_key, needs_lse = needs
    d_query = query.new_zeros(query.shape if needs_query else 0)
    d_key = key.new_zeros(key.shape if needs_key else 0)
    d_lse = query.new_zeros(0) if lse is None else lse.new_zeros(lse.shape if needs_lse else 0)
    for own, own_columns in _sequences(query, cu_seqlens):
        q, k, g = query[own], key[own], grad[own_columns]
        for kv_heads, some_heads, row_blocks in _blocks(q, k):
            block = _Heads.load(q[:, some_heads], k[:, kv_heads], scale)
            block_lse = None if lse is None else _by_head(lse[own][:, some_heads], block.query)
            block_grad = _by_head(g[some_heads].T, block.query)  # (kv heads, groups, n)
            # (kv heads, d, n): BLAS sums the other way round less exactly where a head is narrow.
            block_d_key = torch.zeros_like(block.key.mT, memory_format=torch.contiguous_format)
            for rows in row_blocks:
                visible = rows.stop if causal else q.shape[0]
                scores = block.scores(rows, visible)
                total = score_pass.backward(
                    scores,
                    rows.start if causal else None,
                    None if block_lse is None else block_lse[..., rows],
                    block_grad[..., :visible],
                )
                d_scores = scores.flatten(1, 2)  # (kv heads, groups * rows, columns)
                if needs_query:
                    d_rows = torch.bmm(d_scores, block.key[:, :visible]).mul_(scale)
                    d_rows = d_rows.unflatten(1, (scores.shape[1], -1)).flatten(0, 1)  # (heads, rows, d)
                    d_query[own][rows, some_heads] = d_rows.transpose(0, 1)
                if needs_key:
                    block_d_key[..., :visible].baddbmm_(block.rows(rows).mT, d_scores)
                if needs_lse:
                    d_lse[own][rows, some_heads] = -total.flatten(0, 1).T
            if needs_key:
                d_key[own][:, kv_heads] = block_d_key.permute(2, 0, 1)
    return [d_query, d_key, d_lse]


def _by_head(rows: Tensor, like: Tensor) -> Tensor:
    """(n, heads) as (kv heads, groups, n) in the dtype of ``like`` (kv heads, groups, ...)."""
    # Not contiguous(): where n is one that leaves the strides as they are, and kernels go by them.
    dense = like.new_empty(*like.shape[:2], rows.shape[0])
    return dense.copy_(rows.T.unflatten(0, like.shape[:2]))
