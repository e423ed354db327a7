"""``cls_saliency``: how much the CLS token sees in each patch, between 0 and 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import _importance
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Operator, register
from vr_kernels.ops._importance import ImportanceRequest
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops.attention_importance import OPERATOR as ROWS
from vr_kernels.ops.attention_importance import row_weights

__all__ = ["cls_saliency"]


def cls_saliency(
    cls_query: Tensor,
    key: Tensor,
    *,
    source: str = "logits",
    reduce: str = "mean",
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The saliency map of saliency-enhancing local attention (Vision Remember v1, Eq. 3).

    ``sigmoid(mean_h(scale * q_cls,h . k_n,h))``. The paper leaves open whether the scores are taken before the softmax
    ("logits", the default) or after it ("probs"): after it the map is almost constant, 0.500 to 0.511 on random data.
    Scores, softmax, sums and sigmoid are float32 (float64 for float64 inputs).

    Args:
        cls_query: (B, h, d), the CLS token's query; float32, bfloat16, float16 or float64.
        key: (B, N, h_kv, d), the patches' keys, any strides: the CLS row sliced off is never copied; h_kv divides h.
        source: "logits", or "probs": softmax over the N keys given.
        reduce: "mean", "sum" or "max" over the heads, then the sigmoid; "mean_of_sigmoid": the sigmoid of every head,
            then their mean.
        scale: of the scores; None is 1/sqrt(d).
        backend: as for ``attention_importance``, which computes the scores.

    Returns:
        (B, N) between 0 and 1, in the query's dtype: ``saliency`` of ``local_attention`` and ``local_cross_attention``
        once it is viewed as the grid. Differentiable once, in reverse mode, in cls_query and key.

    Raises:
        ValueError: shapes, devices or options that do not fit; a backend that cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> query, key = torch.randn(5, 577, 16, 64), torch.randn(5, 577, 16, 64)
    >>> saliency = cls_saliency(query[:, 0], key[:, 1:])
    >>> saliency.unflatten(1, (24, 24)).shape, bool(((saliency > 0) & (saliency < 1)).all())
    (torch.Size([5, 24, 24]), True)
    """
    cls_query, key = cast_for_autocast(cls_query, key)
    chosen, scale = _plan(signatures(cls_query, key), source, reduce, scale, backend)
    query_rows = cls_query.unsqueeze(1)  # (B, 1, h, d)
    weights = row_weights(query_rows, key, None, None, source == "probs", scale, chosen).squeeze(-2)  # (B, h, N)
    return _squash(weights, reduce).to(cls_query.dtype)


def _squash(weights: Tensor, kind: str) -> Tensor:
    if kind == "mean_of_sigmoid":
        return torch.sigmoid(weights).mean(-2)
    return torch.sigmoid(_importance.reduce(weights, kind, -2))


def _request(cls_query: Any, key: Any, **options: Any) -> ImportanceRequest:
    cls_query, key = cast_for_autocast(cls_query, key, cast=stand_in)
    return _check(signatures(cls_query, key))


def _check(given: tuple[Any, ...]) -> ImportanceRequest:
    arguments = Arguments("cls_saliency", "cls_query")
    query, key = given
    q = arguments.tensor("cls_query", query)
    arguments.rank("cls_query", q, {3: "(B, h, d)"})
    rows = ((q.shape[0], 1, *q.shape[1:]), q.dtype, q.device)  # (B, 1, h, d)
    return _importance.check_rows(arguments, rows, key, None, None)


@remember
def _plan(
    given: tuple[Any, ...], source: str, kind: str, scale: float | None, backend: str | None
) -> tuple[str, float]:
    request = _check(given)
    arguments = Arguments("cls_saliency")
    arguments.choice("source", source, ("logits", "probs"))
    arguments.choice("reduce", kind, (*_importance.KINDS, "mean_of_sigmoid"))
    return OPERATOR.select(request, backend), arguments.scale(scale, request.width)


OPERATOR: Operator[ImportanceRequest] = Operator("cls_saliency", ROWS.backends, _request, _importance.typical_rows)
register(cls_saliency, OPERATOR)
