"""Local cross-attention in products that never write u = W_k^T q, g = sum_j a_j f_j or their gradients to memory.

Three products of head rows x, a projection W and the windows' features F carry both directions:

    scores   s_j = (x W) . f_j            forward: q, W_k        backward: dO, W_v give dO . W_v f_j
    project  o = (sum_j a_j f_j) W^T      forward: p sigma, W_v  backward: ds, W_k give dq
    outer    dW = sum_n x_n (sum_j a_j f_j)                      backward: q, ds give dW_k; dO, p sigma give dW_v

What stands between them is (N, h, K) float32, some megabytes at the papers' shapes, and is left to torch. The features'
own gradient alone, which an encoder that is trained asks for, takes the blocks of ``blocked_backward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from vr_kernels.ops._registration import as_output
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._windows import gather_windows
from vr_kernels.ops.local_cross_attention import blocked_backward
from vr_kernels.ops.local_cross_attention.blocked import Call, Engine, add_value_bias, prepare


class FusedKernel(Protocol):
    """Products of head rows x (N, h, d), a projection W (h, d, C) and the windows' features F (N, K, C).

    F is the problem's keys, their levels side by side, normalised where the problem has a norm: F = gamma (f - mean)
    rstd + beta by its ``statistics``, without what of gamma and beta is None. The row of an absent slot is zero and is
    never read. The problem is the whole call's, without ``span`` or ``heads``; its scale, bias and saliency are the
    caller's business.

    x, W and what comes out have the features' dtype, a and s are float32. x and W may have any strides; the rest is
    contiguous. No result depends on the order in which programs run. In float16, x W and sum_j a_j F_j can exceed what
    float16 holds, by the loss scale times a feature's outlier.
    """

    def statistics(self, problem: WindowProblem) -> Tensor:
        """Of each feature row and level, (M, L, 2) float32: mean and inverse deviation over the level or over all."""

    def scores(self, problem: WindowProblem, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """out_nhk = sum_c (sum_d x_nhd W_hdc) F_nkc, out (N, h, K)."""

    def project(self, problem: WindowProblem, a: Tensor, weight: Tensor, out: Tensor) -> None:
        """out_nhd = sum_c (sum_k a_nhk F_nkc) W_hdc, out (N, h, d). a (N, h, K) is zero in absent slots."""

    def outer(self, problem: WindowProblem, x: Tensor, a: Tensor, out: Tensor) -> None:
        """out_hdc = sum_n x_nhd sum_k a_nhk F_nkc, out (h, d, C), summed in float32; zeros where N is 0."""


@dataclass(frozen=True)
class FusedEngine:
    """A backend's fused kernel, and the blocks by which it makes the features' gradient."""

    kernel: FusedKernel
    blocks: Engine


def _same(dtype: torch.dtype) -> torch.dtype:
    return dtype


def forward(
    engine: FusedEngine,
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
    call = with_statistics(engine.kernel, prepare(replace(engine.blocks, block_dtype=_same), query, *tensors, *options))
    problem, (n, h, _) = call.problem, call.query.shape
    scores = query.new_empty(n, h, problem.windows.slots, dtype=torch.float32)
    engine.kernel.scores(without_shift(problem), call.query, call.key_weight, scores)
    attention = _softmax(problem, scores)
    out = torch.empty_like(call.query, memory_format=torch.contiguous_format)  # (N, h, d)
    engine.kernel.project(problem, _pooling_weights(problem, attention), call.value_weight, out)
    add_value_bias(call, out, attention, value_bias)
    attention = as_output(attention, *problem.windows.leading, h, problem.windows.slots)
    return as_output(out, *query.shape), attention


def backward(engine: FusedEngine, *inputs: Any) -> list[Tensor]:
    """``blocked_backward.backward`` by the three products."""
    blocks = replace(engine.blocks, block_dtype=_same)
    return blocked_backward.backward(blocks, *inputs, gradients_type=partial(FusedGradients, engine))


class FusedGradients(blocked_backward.Gradients):
    """The same gradients, each weight's by one product over all queries."""

    def __init__(self, engine: FusedEngine, call: Call, *others: Any) -> None:
        call = with_statistics(engine.kernel, call)
        super().__init__(call, *others)
        self.engine = engine
        # The shift, too, adds the same to all dO . v_j of a query: what is left of it is in ``value_constant``.
        self.scaled = without_shift(call.problem)

    def run(self) -> None:
        call, kernel, bare = self.call, self.engine.kernel, self.call.problem
        kernel.scores(self.scaled, self.d_out, call.value_weight, self.d_scores)
        self._through_softmax()
        kept = self.d_rows is not None or bare.attention_bias is not None  # it is asked for once more
        d_products = self.d_scores * bare.scale if kept else self.d_scores.mul_(bare.scale)
        if self.d_query is not None:
            kernel.project(self.scaled, d_products, call.key_weight, self.d_query)
        if self.d_key_weight is not None:
            kernel.outer(bare, call.query, d_products, self.d_key_weight)
            self._through_gamma(self.d_key_weight, call.key_weight)
        if self.d_value_weight is not None:
            kernel.outer(bare, self.d_out, _pooling_weights(bare, self.attention), self.d_value_weight)
            self._through_gamma(self.d_value_weight, call.value_weight)
        if self.d_rows is not None:
            self._add_to_rows()

    def _through_softmax(self) -> None:
        """``d_scores``: from dg . x^_j to the gradient of the scores, in place."""
        d, attention, problem = self.d_scores, self.attention, self.call.problem
        if self.value_constant is not None:
            d += self.value_constant
        if problem.saliency is not None:
            if self.d_slots is not None:
                self.d_slots += (attention * d).sum(1)
            d *= _importance(problem, problem.saliency)
        if self.d_attention is not None:
            d += self.d_attention
        d *= attention
        d.addcmul_(attention, d.sum(-1, keepdim=True), value=-1)
        # The weights sum to one but for rounding, so this sum is zero but for what would multiply the mean feature.
        d.addcmul_(attention, d.sum(-1, keepdim=True), value=-1)

    def _through_gamma(self, d_weight: Tensor, weight: Tensor) -> None:
        """From the gradient of W~ to that of W, in place, and of gamma; head by head, for the memory of it."""
        if self.gamma is None:
            return
        for d_head, head in zip(d_weight, weight, strict=True):  # (d, C)
            self.d_gamma += (head.to(torch.float32) * d_head).sum(0)
        d_weight *= self.gamma

    def _add_to_rows(self) -> None:
        blocks = self.engine.blocks
        dtype = blocks.block_dtype(self.call.query.dtype)
        call = replace(self.call, engine=blocks, query=self.call.query.to(dtype))
        for heads, group in call.blocks():
            w_k, w_v = call.rows("w_k", call.key_weight, heads), call.rows("w_v", call.value_weight, heads)
            for block in group:
                d_out = self.d_out[block.windows, block.heads].transpose(0, 1).to(dtype)  # (heads, n, d)
                d_g = self._scale(torch.bmm(d_out, w_v, out=call.buffer("d_g", block)))  # (heads, n, C)
                self._add_feature_gradient(call, block, w_k, d_g)


def with_statistics(kernel: FusedKernel, call: Call) -> Call:
    """The call with what LayerNorm needs to know of each feature row, if there is one: they are read several times."""
    problem = call.problem
    if problem.norm is None:
        return call
    norm = replace(problem.norm, statistics=kernel.statistics(problem))
    return replace(call, problem=replace(problem, norm=norm))


def without_shift(problem: WindowProblem) -> WindowProblem:
    """LayerNorm's shift adds the same to all scores of a query: it cancels, and its rounding with it."""
    if problem.norm is None:
        return problem
    return replace(problem, norm=replace(problem.norm, bias=None))


def _importance(problem: WindowProblem, saliency: Tensor) -> Tensor:
    """The saliency of each slot, (N, 1, K)."""
    return gather_windows(saliency, problem.windows, problem.window_index)[0].unsqueeze(1)


def _pooling_weights(problem: WindowProblem, attention: Tensor) -> Tensor:
    """p sigma, (N, h, K)."""
    return attention if problem.saliency is None else attention * _importance(problem, problem.saliency)


def _softmax(problem: WindowProblem, scores: Tensor) -> Tensor:
    """(N, h, K) attention from products, which it overwrites; a row with nothing left gives zeros, never NaN."""
    windows, index = problem.windows, problem.window_index
    scores *= problem.scale
    if problem.attention_bias is not None:
        scores += problem.attention_bias
    if index is None and problem.attention_bias is None:
        return scores.softmax(-1)
    if index is not None:
        absent = (index < 0) | (index >= windows.row_count)  # (N, K)
        scores.masked_fill_(absent.unsqueeze(1), -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill_(empty, 0.0)
