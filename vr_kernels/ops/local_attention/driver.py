"""Local attention around a backend's kernels: what is allocated, what is summed, whatever the backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops._arguments import check_index_values
from vr_kernels.ops._layout import plain, unit_inner
from vr_kernels.ops._registration import as_output
from vr_kernels.ops._window_kernel import WindowKernel, WindowProblem
from vr_kernels.ops._windows import Windows, scatter_windows, windows_between


def _problem(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    window_index: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    scale: float,
) -> WindowProblem:
    windows = windows_between(query, keys[0], window_index, query_dims=2)
    check_index_values("local_attention", window_index, windows.row_count)
    return WindowProblem(
        windows,
        keys,
        values,
        scale,
        None if window_index is None else window_index.contiguous(),
        plain(attention_bias),
        plain(saliency),
    )


def forward(
    kernel: WindowKernel,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    window_index: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (*leading, h, d_v), weights (*leading, h, K) and log-sum-exp (*leading, h), the latter two float32."""
    problem = _problem(query, keys, values, window_index, attention_bias, saliency, scale)
    n, (heads, width), leading = problem.windows.count, query.shape[-2:], problem.windows.leading
    out = query.new_empty(n, heads, _width(values or keys))
    attention = query.new_empty(n, heads, problem.windows.slots, dtype=torch.float32)
    lse = query.new_empty(n, heads, 1, dtype=torch.float32)
    kernel.forward(problem, unit_inner(query.reshape(n, heads, width)), out, attention, lse)
    return (
        as_output(out, *leading, heads, out.shape[-1]),
        as_output(attention, *leading, heads, attention.shape[-1]),
        as_output(lse, *leading, heads),
    )


def backward(
    kernel: WindowKernel,
    grad_out: Tensor | None,
    grad_attention: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    window_index: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    attention: Tensor,
    scale: float,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of query, attention_bias, saliency, then of each key and value level; empty where ``needs`` says no.

    ``needs`` is (query, attention_bias, saliency, keys, values). Keys that are also the values get both gradients.
    """
    needs_query, needs_bias, needs_saliency, needs_keys, needs_values = needs
    problem = _problem(query, keys, values, window_index, attention_bias, saliency, scale)
    windows = problem.windows
    n, k, (heads, width) = windows.count, windows.slots, query.shape[-2:]
    value_width = _width(values or keys)
    if grad_out is None:
        grad_out = query.new_zeros(n, heads, value_width)
    d_out = unit_inner(grad_out.reshape(n, heads, value_width))
    d_attention = None if grad_attention is None else grad_attention.reshape(n, heads, k).contiguous()
    d_lse = None if grad_lse is None else grad_lse.reshape(n, heads, 1).contiguous()
    weights = attention.reshape(n, heads, k).contiguous()
    d_scores = torch.empty_like(weights)
    d_query = query.new_empty(n, heads, width) if needs_query else None
    d_slots = weights.new_zeros(n, k) if needs_saliency else None
    kernel.backward(problem, d_out, weights, d_attention, d_lse, None, d_scores, d_query, None, d_slots)

    def absent(count: int) -> list[Tensor]:
        return [query.new_empty(0) for _ in range(count)]

    gradients = absent(3)
    if d_query is not None:
        gradients[0] = d_query.view(query.shape)
    if needs_bias and attention_bias is not None:
        gradients[1] = (d_scores if attention_bias.dim() == 3 else d_scores.sum(0)).to(attention_bias.dtype)
    if d_slots is not None and saliency is not None:
        gradients[2] = scatter_windows(d_slots, windows, window_index).to(saliency.dtype)
    if not (needs_keys or needs_values):
        return gradients + absent(len(keys) + len(values))

    d_keys = _accumulator(windows, keys)
    d_values = _accumulator(windows, values) if values else None
    q = unit_inner(query.reshape(n, heads, width))
    kernel.feature_gradient(problem, q, d_out, weights, d_scores, d_keys, d_values)
    gradients += _per_level(d_keys, keys) if needs_keys else absent(len(keys))
    if d_values is not None:
        gradients += _per_level(d_values, values) if needs_values else absent(len(values))
    return gradients


def _width(levels: Sequence[Tensor]) -> int:
    return sum(level.shape[-1] for level in levels)


def _accumulator(windows: Windows, levels: Sequence[Tensor]) -> Tensor:
    """float32 zeros (M, h_kv, C)."""
    shape = (windows.row_count, levels[0].shape[-2], _width(levels))
    return levels[0].new_zeros(shape, dtype=torch.float32)


def _per_level(gradient: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    parts = gradient.split([level.shape[-1] for level in levels], dim=-1)
    return [part.reshape(level.shape).to(level.dtype).contiguous() for part, level in zip(parts, levels, strict=True)]
