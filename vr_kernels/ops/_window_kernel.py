"""What a backend of windowed attention must do: three kernels over one problem. All around them is written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vr_kernels.ops._windows import Windows


@dataclass(frozen=True)
class FeatureNorm:
    """LayerNorm of the keys while they are read, over all their channels or each level's; no affine without weight."""

    weight: Tensor | None  # (C,) float32
    bias: Tensor | None
    eps: float
    per_level: bool
    statistics: Tensor | None = None  # (M, L, 2): each row's mean and inverse deviation, where they were made before


@dataclass(frozen=True)
class WindowProblem:
    """Some heads of some windows of a call. Everything is already checked; small tensors are float32 and contiguous."""

    windows: Windows  # of the whole call
    keys: Sequence[Tensor]  # levels (*rows, h_kv, D_l), any strides; several only where h_kv = 1
    values: Sequence[Tensor]  # the same, or empty: the values are the keys
    scale: float
    window_index: Tensor | None = None  # (N, K) contiguous
    attention_bias: Tensor | None = None  # (h, K) or (N, h, K)
    saliency: Tensor | None = None  # (*rows)
    norm: FeatureNorm | None = None
    span: slice | None = None  # this block's windows; None: all
    heads: slice | None = None  # this block's heads; None: all

    @property
    def first_window(self) -> int:
        return 0 if self.span is None else self.span.start

    def index_of_block(self) -> Tensor | None:
        return self.window_index if self.window_index is None or self.span is None else self.window_index[self.span]

    def bias_of_block(self) -> Tensor | None:
        """(heads, K) or (windows, heads, K) of this block, K contiguous."""
        bias = self.attention_bias
        if bias is None or self.heads is None:
            return bias
        return bias[self.heads] if bias.dim() == 2 else bias[self.span, self.heads]


class WindowKernel(Protocol):
    """Block tensors are (windows, heads, width) views with unit inner stride; attention and scores are float32.

    Queries and outputs share a dtype, which may be wider than the features'.
    """

    def forward(
        self, problem: WindowProblem, query: Tensor, out: Tensor, attention: Tensor, lse: Tensor | None
    ) -> None:
        """s = scale q.k + bias, attention = softmax(s), out = sum_j attention_j saliency_j v_j.

        lse is (windows, heads, 1). ``out`` may be ``query`` itself where the values are the keys.
        """

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
        """t_j = grad_out.v_j + value_constant, dp = saliency t + grad_attention,

        grad_scores = p (dp - sum p dp) + p grad_lse, grad_query = scale sum_j grad_scores_j k_j,
        pooled = sum_j p_j saliency_j v_j, grad_slots (windows, K) += sum over the heads of p t.
        """

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
        """grad_keys (M, h_kv, C) float32 += scale sum_h grad_scores_h query_h.

        The same with attention saliency grad_out goes into grad_values, or into grad_keys where the values are the
        keys. With a norm: of the normalised rows. The result does not depend on the order in which windows run.
        """
