"""The gradients of local cross-attention, with the blocks of ``blocked``.

With dO per head and dg = W_v^T dO:  dW_v = sum dO g^T,  ds = p (dp - sum p dp) with dp_j = sigma_j dg . f_j,
du = scale sum_j ds_j f_j,  dW_k = sum q du^T,  dq = W_k du.  Every sum runs over queries; the features' own
gradient is made only when they ask for it.

LayerNorm: the kernel reads x^ (normalised, no affine), so that all of the above comes out for the weights W~ = W gamma.
Then dW = gamma dW~, and the affine parameters need no sum over features at all:
dgamma_c = sum_e (W_k dW~_k + W_v dW~_v)_ec,  dbeta = W_v^T sum_n (sum_j p_j sigma_j) dO_n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._windows import scatter_windows
from vr_kernels.ops._workspace import workspace
from vr_kernels.ops.local_cross_attention.blocked import Block, Call, Engine, prepare

# The order of ``needs`` and of the gradients; one gradient a feature level follows.
NEEDS = (
    "query",
    "key_weight",
    "value_weight",
    "key_bias",
    "value_bias",
    "norm_weight",
    "norm_bias",
    "attention_bias",
    "saliency",
    "features",
)


def backward(
    engine: Engine,
    grad_out: Tensor | None,
    grad_attention: Tensor | None,
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
    attention: Tensor,
    *options: Any,
    gradients_type: Callable[..., Gradients] | None = None,
) -> list[Tensor]:
    """Gradients in the order of ``NEEDS``, then one a level; empty where not needed.

    ``gradients_type`` may replace the loop over blocks.
    """
    *call_options, needs = options
    wants = dict(zip(NEEDS, needs, strict=True))
    tensors = (features, key_weight, value_weight, window_index, norm_weight, norm_bias, attention_bias, saliency)
    call = prepare(engine, query, *tensors, *call_options)
    gradients = (gradients_type or Gradients)(call, wants, grad_out, grad_attention, attention, value_bias)
    gradients.run()
    inputs = (query, key_weight, value_weight, key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency)
    results = []
    for name, tensor in zip(NEEDS, inputs, strict=False):
        gradient = gradients.named(name) if wants[name] else None
        if gradient is None or tensor is None:
            results.append(query.new_empty(0))
        else:
            results.append(gradient.to(tensor.dtype).reshape(tensor.shape).contiguous())
    if wants["features"]:
        return results + gradients.of_features(features)
    return results + [query.new_empty(0) for _ in features]


class Gradients:
    """The sums that blocks add to, and what becomes of them."""

    def __init__(
        self,
        call: Call,
        wants: dict[str, bool],
        grad_out: Tensor | None,
        grad_attention: Tensor | None,
        attention: Tensor,
        value_bias: Tensor | None,
    ) -> None:
        windows, norm, (n, h, d) = call.problem.windows, call.problem.norm, call.query.shape
        self.gamma, self.beta = (None, None) if norm is None else (norm.weight, norm.bias)
        # The kernel reads features without the affine; its factors come in around it.
        bare = None if norm is None else replace(norm, weight=None, bias=None)
        self.call = replace(call, problem=replace(call.problem, norm=bare))
        empty, zeros = call.query.new_empty, call.query.new_zeros
        self.d_out = zeros(n, h, d) if grad_out is None else grad_out.reshape(n, h, d).to(call.query.dtype)
        self.attention = attention.reshape(n, h, windows.slots).contiguous()
        self.d_attention = None if grad_attention is None else grad_attention.reshape(self.attention.shape).contiguous()
        self.value_constant = self._value_constant(value_bias)

        self.d_scores = torch.empty_like(self.attention)
        self.d_query = empty(n, h, d) if wants["query"] else None
        wants_key, wants_value = (wants[name] or wants["norm_weight"] for name in ("key_weight", "value_weight"))
        like = partial(torch.empty_like, memory_format=torch.contiguous_format)
        self.d_key_weight = like(call.key_weight) if wants_key else None
        self.d_value_weight = like(call.value_weight) if wants_value else None
        self.d_gamma = zeros(call.channels, dtype=torch.float32)
        self.d_slots = zeros(n, windows.slots, dtype=torch.float32) if wants["saliency"] else None
        rows = (windows.row_count, 1, call.channels)
        self.d_rows = zeros(rows, dtype=torch.float32) if wants["features"] else None

    def run(self) -> None:
        call = self.call
        for heads, blocks in call.blocks():
            w_k, w_v = call.rows("w_k", call.key_weight, heads), call.rows("w_v", call.value_weight, heads)
            d_w_k = self._weight_sum("d_w_k", self.d_key_weight, heads, len(blocks))
            d_w_v = self._weight_sum("d_w_v", self.d_value_weight, heads, len(blocks))
            for block in blocks:
                self._block(block, w_k, w_v, d_w_k, d_w_v)
            self._finish(d_w_k, w_k)
            self._finish(d_w_v, w_v)

    def _weight_sum(self, name: str, gradient: Tensor | None, heads: slice, blocks: int) -> WeightSum | None:
        return None if gradient is None else WeightSum(name, gradient[heads], blocks)

    def _block(self, block: Block, w_k: Tensor, w_v: Tensor, d_w_k: WeightSum | None, d_w_v: WeightSum | None) -> None:
        call, at = self.call, (block.windows, block.heads)
        kernel, problem = call.engine.kernel, call.of_block(block)
        d_out, query = self.d_out[at].transpose(0, 1), call.query[at].transpose(0, 1)  # (heads, n, d)
        d_g = self._scale(torch.bmm(d_out, w_v, out=call.buffer("d_g", block)))  # (heads, n, C)
        wants_d_u = self.d_query is not None or d_w_k is not None
        d_u = call.buffer("u", block) if wants_d_u else None
        g = call.buffer("g", block) if d_w_v is not None else None
        kernel.backward(
            problem,
            d_g.transpose(0, 1),
            self.attention[at],
            None if self.d_attention is None else self.d_attention[at],
            None,
            None if self.value_constant is None else self.value_constant[at],
            self.d_scores[at],
            None if d_u is None else d_u.transpose(0, 1),
            None if g is None else g.transpose(0, 1),
            None if self.d_slots is None else self.d_slots[block.windows],
        )
        if g is not None and d_w_v is not None:
            d_w_v.add(d_out.transpose(1, 2), g)
        if d_u is not None and d_w_k is not None:
            d_w_k.add(query.transpose(1, 2), d_u)
        if d_u is not None and self.d_query is not None:
            self.d_query[at] = torch.bmm(self._scale(d_u), w_k.transpose(1, 2)).transpose(0, 1)
        if self.d_rows is not None:
            self._add_feature_gradient(call, block, w_k, d_g)

    def _add_feature_gradient(self, call: Call, block: Block, w_k: Tensor, d_g: Tensor) -> None:
        """Of the rows that the kernel reads, from d_g and u, (heads, n, C)."""
        assert self.d_rows is not None
        at = (block.windows, block.heads)
        u = self._scale(torch.bmm(call.query[at].transpose(0, 1), w_k, out=call.buffer("u", block)))  # d_u was used
        rows, d_rows = u.transpose(0, 1), d_g.transpose(0, 1)
        call.engine.kernel.feature_gradient(
            call.of_block(block), rows, d_rows, self.attention[at], self.d_scores[at], self.d_rows, None
        )

    def _scale(self, block: Tensor) -> Tensor:
        return block if self.gamma is None else block.mul_(self.gamma)

    def _finish(self, gradient: WeightSum | None, weight: Tensor) -> None:
        """From the gradient of W~ to that of W and gamma, for one group of heads."""
        if gradient is None:
            return
        d_weight = gradient.finish()
        if self.gamma is not None:
            d_weight = d_weight.to(torch.float32)
            self.d_gamma += (weight.to(torch.float32) * d_weight).sum((0, 1))
            d_weight = d_weight * self.gamma
        if d_weight is not gradient.target:
            gradient.target.copy_(d_weight)

    def _value_constant(self, value_bias: Tensor | None) -> Tensor | None:
        """What a value adds to dO . v_j beside dg . x^_j, (N, h, 1). Without a saliency it is one number for all j: it
        drops out of ds."""
        call = self.call
        if call.problem.saliency is None:
            return None
        constant = call.query.new_zeros(call.query.shape[1:], dtype=torch.float32)  # (h, d)
        if self.beta is not None:
            constant += call.value_weight.to(torch.float32) @ self.beta
        if value_bias is not None and not call.saliency_on_feature:
            constant += value_bias.to(torch.float32).view_as(constant)
        return (self.d_out.to(torch.float32) * constant).sum(-1, keepdim=True)

    def _sum_of_d_out(self, weights: Tensor | None) -> Tensor:
        """sum_n w_n dO_n, (h, d)."""
        d_out = self.d_out.to(torch.float32)
        return (d_out if weights is None else weights * d_out).sum(0)

    def named(self, name: str) -> Tensor | None:
        """A gradient by its argument's name."""
        call, problem = self.call, self.call.problem
        if name == "key_weight":
            return self.d_key_weight
        if name == "value_weight":
            if self.d_value_weight is None or self.beta is None:
                return self.d_value_weight
            return self.d_value_weight + self._sum_of_d_out(call.pooled_weight(self.attention))[..., None] * self.beta
        if name == "key_bias":
            return call.query.new_zeros(call.query.shape[1:])
        if name == "value_bias":
            return self._sum_of_d_out(call.bias_weight(self.attention))
        if name == "norm_bias":
            total = self._sum_of_d_out(call.pooled_weight(self.attention))
            return torch.einsum("hd,hdc->c", total, call.value_weight.to(torch.float32))
        if name == "attention_bias":
            shared = problem.attention_bias is not None and problem.attention_bias.dim() == 2
            return self.d_scores.sum(0) if shared else self.d_scores
        if name == "saliency":
            assert self.d_slots is not None
            return scatter_windows(self.d_slots, problem.windows, problem.window_index)
        return {"query": self.d_query, "norm_weight": self.d_gamma}[name]

    def of_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of the rows that the kernel read -> each level's, through LayerNorm where there is one."""
        assert self.d_rows is not None
        norm, widths = self.call.problem.norm, [level.shape[-1] for level in features]
        gradient = self.d_rows.squeeze(1)  # (M, C)
        if norm is not None:
            rows = torch.cat([level.reshape(-1, level.shape[-1]) for level in features], -1).to(torch.float32)
            groups = widths if norm.per_level else [self.call.channels]
            pairs = zip(gradient.split(groups, -1), rows.split(groups, -1), strict=True)
            gradient = torch.cat([_layer_norm_backward(d, x, norm.eps) for d, x in pairs], -1)
        parts = gradient.split(widths, -1)
        return [
            part.reshape(level.shape).to(level.dtype).contiguous() for part, level in zip(parts, features, strict=True)
        ]


class WeightSum:
    """A group's weight gradient: the sum over its blocks of a b, a (heads, d, n), b (heads, n, C), made in ``target``.

    Several blocks are summed in float32: a bfloat16 sum of blocks errs 3 to 4.5 times as much as torch's own.
    """

    def __init__(self, name: str, target: Tensor, blocks: int) -> None:
        self.name, self.target, self.blocks = name, target, blocks
        self.total: Tensor | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.blocks == 1 and a.dtype == self.target.dtype:
            self.total = torch.bmm(a, b, out=self.target)
            return
        shape, device = tuple(self.target.shape), a.device
        part = torch.bmm(a, b, out=workspace("part of a weight", shape, a.dtype, device))
        if self.total is None:
            self.total = workspace(self.name, shape, torch.float32, device).copy_(part)
        else:
            self.total += part

    def finish(self) -> Tensor:
        """The sum; zeros where there was no query."""
        return self.target.zero_() if self.total is None else self.total


def _layer_norm_backward(gradient: Tensor, x: Tensor, eps: float) -> Tensor:
    shape = [x.shape[-1]]
    _, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    mask = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(gradient, x, shape, mean, rstd, None, None, mask)[0]  # type: ignore[no-any-return]
