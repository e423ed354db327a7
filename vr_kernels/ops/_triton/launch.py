"""``WindowKernel`` by Triton: the launches. Triton itself is imported by the first one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._inverse_index import readers_of_rows
from vr_kernels.ops._triton import arguments
from vr_kernels.ops._triton.configurations import (
    ATTENTION,
    FEATURE_GRADIENT,
    SMALLEST_TILE,
    Configuration,
    choose,
    padded,
)
from vr_kernels.ops._window_kernel import WindowProblem


class TritonKernel:
    """``WindowKernel`` by Triton, on the current stream of the tensors' device."""

    def forward(
        self, problem: WindowProblem, query: Tensor, out: Tensor, attention: Tensor, lse: Tensor | None
    ) -> None:
        from vr_kernels.ops._triton.forward import window_attention_forward

        if query.shape[0] == 0:
            return
        with torch.cuda.device_of(query):
            window_attention_forward[_window_programs(problem, query)](
                arguments.rows(query),
                arguments.rows(out),
                arguments.rows(attention),
                arguments.rows(lse),
                bias=arguments.bias_rows(problem.bias_of_block()),
                **_window_arguments(problem, query),
            )

    def backward(
        self,
        problem: WindowProblem,
        grad_out: Tensor,
        attention: Tensor,
        grad_attention: Tensor | None,
        grad_lse: Tensor | None,
        value_constant: Tensor | None,
        grad_scores: Tensor,
        grad_query: Tensor | None,
        pooled: Tensor | None,
        grad_slots: Tensor | None,
    ) -> None:
        from vr_kernels.ops._triton.backward import window_attention_backward

        if grad_out.shape[0] == 0:
            return
        # Summed over the heads by torch: programs of one window would have to add to it in an order that varies.
        slot_products = None if grad_slots is None else torch.empty_like(attention)
        given = (grad_out, attention, grad_attention, grad_lse, value_constant)
        made = (grad_scores, grad_query, pooled, slot_products)
        with torch.cuda.device_of(grad_out):
            window_attention_backward[_window_programs(problem, grad_out)](
                *map(arguments.rows, given), *map(arguments.rows, made), **_window_arguments(problem, grad_out)
            )
        if grad_slots is not None and slot_products is not None:
            grad_slots += slot_products.sum(1)

    def feature_gradient(
        self,
        problem: WindowProblem,
        query: Tensor,
        grad_out: Tensor,
        attention: Tensor,
        grad_scores: Tensor,
        grad_keys: Tensor,
        grad_values: Tensor | None,
    ) -> None:
        if query.shape[0] == 0:
            return
        key_term = {"query": arguments.rows(query), "grad_scores": arguments.rows(grad_scores)}
        value_term = {"grad_out": arguments.rows(grad_out), "attention": arguments.rows(attention)}
        no_term = dict.fromkeys((*key_term, *value_term))
        add = _add_to_overlapping if problem.windows.window is None else _add_to_disjoint
        with torch.cuda.device_of(query):
            if grad_values is None:
                add(problem, query, grad_keys, key_term | value_term)
            else:
                add(problem, query, grad_keys, no_term | key_term)
                add(problem, query, grad_values, no_term | value_term)


def _geometry(problem: WindowProblem) -> dict[str, Any]:
    """Where windows and slots stand. Numbers that the indexed form has no use for are one, lest they make variants."""
    windows = problem.windows
    _, n_h, n_w = windows.leading if windows.window is not None else (1, 1, 1)
    s_h, s_w = windows.window or (1, 1)
    return {
        "first_window": problem.first_window,
        "n_h": n_h,
        "n_w": n_w,
        "row_count": windows.row_count,
        "SLOTS": windows.slots,
        "S_H": s_h,
        "S_W": s_w,
        "BLOCK_K": padded(windows.slots),
    }


def _heads(problem: WindowProblem, block: Tensor) -> dict[str, int]:
    return {"HEADS": block.shape[1], "KV_HEADS": problem.keys[0].shape[-2], "BLOCK_H": SMALLEST_TILE}


def _window_programs(problem: WindowProblem, block: Tensor) -> tuple[int]:
    """One for each window and tile of heads that share a kv head; on the first axis, which alone passes 65,535."""
    windows, heads, _ = block.shape
    kv_heads = problem.keys[0].shape[-2]
    return (windows * kv_heads * -(-(heads // kv_heads) // SMALLEST_TILE),)


def _window_arguments(problem: WindowProblem, block: Tensor) -> dict[str, Any]:
    norm, key_widths = problem.norm, arguments.widths(problem.keys)
    value_widths = arguments.widths(problem.values) or key_widths
    configuration = choose(ATTENTION, block.dtype, problem.windows.slots, max(key_widths + value_widths))
    return {
        "keys": arguments.levels(problem.keys, problem.windows),
        "values": arguments.levels(problem.values, problem.windows),
        "p_index": problem.index_of_block(),
        "p_saliency": problem.saliency,
        "p_norm_weight": None if norm is None else norm.weight,
        "p_norm_bias": None if norm is None else norm.bias,
        "norm_eps": 0.0 if norm is None else norm.eps,
        "scale": problem.scale,
        "KEY_WIDTHS": key_widths,
        "VALUE_WIDTHS": value_widths,
        "NORM_GROUPS": None if norm is None else "level" if norm.per_level else "all",
        **_geometry(problem),
        **_heads(problem, block),
        **configuration.options(),
    }


def _add_to_disjoint(problem: WindowProblem, block: Tensor, gradient: Tensor, terms: dict[str, Any]) -> None:
    from vr_kernels.ops._triton.feature_gradient import disjoint_windows

    configuration = choose(FEATURE_GRADIENT, block.dtype, problem.windows.slots, gradient.shape[-1])
    disjoint_windows[_row_programs(block.shape[0], gradient, configuration)](
        gradient,
        **terms,
        p_saliency=problem.saliency,
        scale=problem.scale,
        WIDTH=gradient.shape[-1],
        **_geometry(problem),
        **_heads(problem, block),
        **configuration.options(),
    )


def _add_to_overlapping(problem: WindowProblem, block: Tensor, gradient: Tensor, terms: dict[str, Any]) -> None:
    from vr_kernels.ops._triton.feature_gradient import overlapping_windows

    configuration = choose(FEATURE_GRADIENT, block.dtype, problem.windows.slots, gradient.shape[-1])
    index = problem.index_of_block()
    assert index is not None
    reader, first = readers_of_rows(index, problem.windows.row_count)
    overlapping_windows[_row_programs(gradient.shape[0], gradient, configuration)](
        gradient,
        **terms,
        p_saliency=problem.saliency,
        scale=problem.scale,
        p_reader=reader,
        p_first=first,
        WIDTH=gradient.shape[-1],
        SLOTS=problem.windows.slots,
        **_heads(problem, block),
        **configuration.options(),
    )


def _row_programs(count: int, gradient: Tensor, configuration: Configuration) -> tuple[int]:
    _, kv_heads, width = gradient.shape
    return (count * kv_heads * -(-width // configuration.block_c),)
