"""Local cross-attention with absorbed projections: torch's GEMMs around a windowed kernel, block by block.

A block is some heads of some queries: u = W_k^T q by one GEMM into a reused buffer, the kernel turns it in place into
g = sum_j p_j sigma_j f_j while it is in cache, and a second GEMM makes o = W_v g. All of u for the papers' shapes is
85 MB, and mapping that memory afresh costs more than computing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._arguments import check_index_values
from vr_kernels.ops._layout import plain
from vr_kernels.ops._registration import as_output
from vr_kernels.ops._window_kernel import FeatureNorm, WindowKernel, WindowProblem
from vr_kernels.ops._windows import gather_windows, windows_between
from vr_kernels.ops._workspace import workspace


@dataclass(frozen=True)
class Engine:
    """A backend's kernels and the blocks that suit its caches."""

    kernel: WindowKernel
    block_dtype: Callable[[torch.dtype], torch.dtype]  # what u, g and their gradients are kept in
    least_heads: int  # of a block, unless there are fewer: they share what the kernel reads of the features
    block_bytes: int  # of u


def widen_float16(dtype: torch.dtype) -> torch.dtype:
    """What a GPU keeps blocks in: float16 cannot hold loss scale times feature outliers, as u and g have them."""
    return torch.float32 if dtype == torch.float16 else dtype


@dataclass(frozen=True)
class Block:
    heads: slice
    windows: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.heads.stop - self.heads.start, self.windows.stop - self.windows.start


@dataclass(frozen=True)
class Call:
    """One call's arguments as its blocks take them."""

    engine: Engine
    problem: WindowProblem
    query: Tensor  # (N, h, d) in the block's dtype
    key_weight: Tensor  # (h, d, C)
    value_weight: Tensor  # (h, d, C)
    saliency_on_feature: bool

    @property
    def channels(self) -> int:
        return self.key_weight.shape[-1]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    def blocks(self) -> Iterator[tuple[slice, list[Block]]]:
        """Groups of heads outside, queries inside: a group's weights stay in cache while its queries pass.

        All queries of as many heads as fit, since queries that are split cost a sum of weight gradients.
        """
        count, engine = self.problem.windows.count, self.engine
        bytes_a_head = max(1, count * self.channels * self.query.element_size())
        heads = _even_step(self.heads, max(engine.least_heads, engine.block_bytes // bytes_a_head))
        queries = _even_step(count, max(1, engine.block_bytes * count // (bytes_a_head * heads)))
        for h in range(0, self.heads, heads):
            group = slice(h, min(h + heads, self.heads))
            yield group, [Block(group, slice(n, min(n + queries, count))) for n in range(0, count, queries)]

    def of_block(self, block: Block) -> WindowProblem:
        return replace(self.problem, span=block.windows, heads=block.heads)

    def buffer(self, name: str, block: Block) -> Tensor:
        """(heads, windows, C) of reused memory."""
        return workspace(name, (*block.shape, self.channels), self.query.dtype, self.query.device)

    def rows(self, name: str, weight: Tensor, heads: slice) -> Tensor:
        """Some heads' rows of a projection, (heads, d, C), in the block's dtype; converted into reused memory."""
        rows = weight[heads]
        if rows.dtype == self.query.dtype:
            return rows
        return workspace(name, tuple(rows.shape), self.query.dtype, rows.device).copy_(rows)

    def pooled_weight(self, attention: Tensor) -> Tensor | None:
        """sum_j p_j sigma_j, (N, h, 1): the factor of a constant added to every feature; None where it is one."""
        problem = self.problem
        if problem.saliency is None:
            return self._present_weight(attention)
        importance = gather_windows(problem.saliency, problem.windows, problem.window_index)[0]  # (N, K)
        return (attention * importance.unsqueeze(1)).sum(-1, keepdim=True)

    def bias_weight(self, attention: Tensor) -> Tensor | None:
        """The same for a constant added to every value: the value bias."""
        return self._present_weight(attention) if self.saliency_on_feature else self.pooled_weight(attention)

    def _present_weight(self, attention: Tensor) -> Tensor | None:
        """sum_j p_j: one, or zero for a query without any key, which a grid without bias does not have."""
        may_be_empty = self.problem.windows.window is None or self.problem.attention_bias is not None
        return attention.sum(-1, keepdim=True) if may_be_empty else None


def _even_step(count: int, most: int) -> int:
    """``count`` cut into the fewest steps of at most ``most``, of nearly equal size."""
    steps = max(1, -(-count // most))
    return max(1, -(-count // steps))


def prepare(
    engine: Engine,
    query: Tensor,
    features: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    window_index: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    num_heads: int,
    norm_eps: float,
    norm_per_level: bool,
    saliency_on_feature: bool,
    scale: float,
) -> Call:
    windows = windows_between(query, features[0], window_index, query_dims=1)
    check_index_values("local_cross_attention", window_index, windows.row_count)
    width = query.shape[-1] // num_heads
    norm = None
    if norm_weight is not None:
        norm = FeatureNorm(plain(norm_weight), plain(norm_bias), norm_eps, norm_per_level)
    problem = WindowProblem(
        windows,
        keys=[level.unsqueeze(-2) for level in features],
        values=(),
        scale=scale,
        window_index=None if window_index is None else window_index.contiguous(),
        attention_bias=plain(attention_bias),
        saliency=plain(saliency),
        norm=norm,
    )
    return Call(
        engine,
        problem,
        query=query.reshape(windows.count, num_heads, width).to(engine.block_dtype(query.dtype)),
        key_weight=key_weight.unflatten(0, (num_heads, width)),
        value_weight=value_weight.unflatten(0, (num_heads, width)),
        saliency_on_feature=saliency_on_feature,
    )


def forward(
    engine: Engine,
    query: Tensor,
    features: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    window_index: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """Output (*leading, E) and weights (*leading, h, K). ``key_bias`` shifts all scores of a query: it cancels."""
    tensors = (features, key_weight, value_weight, window_index, norm_weight, norm_bias, attention_bias, saliency)
    call = prepare(engine, query, *tensors, *options)
    windows, (n, h, _) = call.problem.windows, call.query.shape
    attention = query.new_empty(n, h, windows.slots, dtype=torch.float32)
    out = torch.empty_like(call.query, memory_format=torch.contiguous_format)  # (N, h, d)
    for heads, blocks in call.blocks():
        w_k, w_v = call.rows("w_k", call.key_weight, heads), call.rows("w_v", call.value_weight, heads)
        for block in blocks:
            at = (block.windows, block.heads)
            u = call.buffer("u", block)  # (heads, n, C)
            torch.bmm(call.query[at].transpose(0, 1), w_k, out=u)
            rows = u.transpose(0, 1)
            engine.kernel.forward(call.of_block(block), rows, rows, attention[at], None)  # in place: u becomes g
            out[at] = torch.bmm(u, w_v.transpose(1, 2)).transpose(0, 1)
    add_value_bias(call, out, attention, value_bias)
    attention = as_output(attention, *windows.leading, h, windows.slots)
    return as_output(out.to(query.dtype), *query.shape), attention


def add_value_bias(call: Call, out: Tensor, attention: Tensor, value_bias: Tensor | None) -> None:
    """out (N, h, d) += the bias times each query's weights together."""
    if value_bias is not None:
        bias, total = value_bias.to(torch.float32).view(out.shape[1:]), call.bias_weight(attention)
        out += bias if total is None else total * bias
