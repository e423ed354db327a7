"""``attention_importance``: what a few given rows attend to, without the attention map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._importance import KINDS, ImportanceRequest, check_rows, reduce, typical_rows
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops._sequences import check_cu_seqlens_values
from vr_kernels.ops._triton import heads
from vr_kernels.ops.attention_importance import op, reference

__all__ = ["attention_importance"]


def attention_importance(
    query_rows: Tensor,
    key: Tensor,
    *,
    normalize: str = "softmax",
    reduce_heads: str | None = "mean",
    reduce_rows: str = "mean",
    key_mask: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The attention that R given rows pay to each token of their sequence, reduced over heads, then over rows.

    ``w_hrn = softmax_n(scale * q_rh . k_nh)``: with the CLS row it is the score of VisionZip and VisPruner, with the
    last text token FastV's, with instruction or rater rows PyramidDrop's and SparseVLM's. Scores, softmax and sums
    are float32 (float64 for float64 inputs). Only (h, R, N) weights are made, never a map of all rows.

    Args:
        query_rows: (B, R, h, d), R at least 1; float32, bfloat16, float16 or float64.
        key: (B, N, h_kv, d), any strides: a projection viewed as heads, with or without its CLS row; h_kv divides h.
        normalize: "softmax" over the tokens, or "none": the scaled scores themselves.
        reduce_heads: "mean", "sum", "max"; None keeps the heads.
        reduce_rows: "mean", "sum", "max", after the heads are reduced. Equal largest weights share a gradient.
        key_mask: (B, N) bool, True where a token may be attended. The others have weight 0, under "none" too; a row
            with nothing left has weight 0 everywhere.
        scale: of the scores; None is 1/sqrt(d).
        cu_seqlens: (S + 1,) int32 or int64, rising from 0 to T, for S packed sequences: query_rows (S, R, h, d), key
            (T, h_kv, d). Values are checked on the CPU (not inside compiled graphs); tokens past the bounds get 0.
        backend: None chooses; "cpu", "triton" or "reference" by name: it runs or it raises.

    Returns:
        (B, N), packed (T,), in the query's dtype; (B, h, N) or (h, T) where ``reduce_heads`` is None. Differentiable
        once, in reverse mode, in query_rows and key.

    Raises:
        ValueError: shapes, devices, options or bounds that do not fit; a backend that cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> query, key = torch.randn(2, 577, 16, 64), torch.randn(2, 577, 16, 64)
    >>> cls = attention_importance(query[:, :1], key)  # the CLS token attends to itself too
    >>> cls.shape, bool(torch.allclose(cls.sum(-1), torch.ones(2)))
    (torch.Size([2, 577]), True)
    """
    query_rows, key = cast_for_autocast(query_rows, key)
    given = signatures(query_rows, key, key_mask, cu_seqlens)
    chosen, scale = _plan(given, normalize, reduce_heads, reduce_rows, scale, backend)
    weights = row_weights(query_rows, key, key_mask, cu_seqlens, normalize == "softmax", scale, chosen)
    weights = reduce(weights, reduce_heads, -3)  # (B, [h,] R, N)
    return reduce(weights, reduce_rows, -2).to(query_rows.dtype)


def row_weights(
    query_rows: Tensor,
    key: Tensor,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    softmax: bool,
    scale: float,
    backend: str,
) -> Tensor:
    """A checked call's weights before they are reduced, (B, h, R, N) or (h, R, T), float32 or float64."""
    if backend == "reference":
        check_cu_seqlens_values("attention_importance", cu_seqlens, key.shape[-3])
        return reference.attention_importance(
            query_rows, key, key_mask=key_mask, cu_seqlens=cu_seqlens, softmax=softmax, scale=scale
        )
    weights: Tensor = op.run(query_rows, key, key_mask, cu_seqlens, softmax, scale, backend)
    return weights


def _request(
    query_rows: Any, key: Any, *, key_mask: Any = None, cu_seqlens: Any = None, **options: Any
) -> ImportanceRequest:
    query_rows, key = cast_for_autocast(query_rows, key, cast=stand_in)
    return _check(signatures(query_rows, key, key_mask, cu_seqlens))


def _check(given: tuple[Any, ...]) -> ImportanceRequest:
    return check_rows(Arguments("attention_importance", "query_rows"), *given)


@remember
def _plan(
    given: tuple[Any, ...],
    normalize: str,
    reduce_heads: str | None,
    reduce_rows: str,
    scale: float | None,
    backend: str | None,
) -> tuple[str, float]:
    request = _check(given)
    arguments = Arguments("attention_importance")
    arguments.choice("normalize", normalize, ("softmax", "none"))
    arguments.choice("reduce_heads", reduce_heads, (*KINDS, None))
    arguments.choice("reduce_rows", reduce_rows, KINDS)
    return OPERATOR.select(request, backend), arguments.scale(scale, request.width)


OPERATOR: Operator[ImportanceRequest] = Operator(
    "attention_importance",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=heads.refuses, passed_over=experimental),
        Backend("reference"),
    ),
    _request,
    typical_rows,
)
register(attention_importance, OPERATOR)
