"""``bidirectional_attention``: the vision tokens of one image attend to each other and to a guide."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, Request, register
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops._sequences import check_cu_seqlens, check_cu_seqlens_values
from vr_kernels.ops.bidirectional_attention import reference, sdpa
from vr_kernels.ops.bidirectional_attention.driver import attend_packed, attend_padded

__all__ = ["bidirectional_attention"]

ATTEND = {"sdpa": sdpa.attend, "reference": reference.attend}


def bidirectional_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_value: Tensor | None = None,
    guide_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Every token of a sequence attends to all of its tokens and to one guide (Vision Remember v2, §3.3).

    The guide is a key and a value alone: its own output is never computed. A guide that already stands in the same
    buffer is best left there, as the last of M = N + 1 keys: that copies nothing.

    Args:
        query: (B, N, h, d) padded, (T, h, d) packed; float32, bfloat16, float16 or float64.
        key, value: (B, M, h_kv, d) or (T, h_kv, d), any strides; h_kv divides h.
        cu_seqlens: (S + 1,) int32 or int64, where each of S packed sequences starts, and T. On the CPU values are
            checked; elsewhere rows outside of all sequences give zeros. Looking at them would synchronise a GPU: there
            the packed form is one attention under a mask, (T, T + S).
        guide_key, guide_value: (B, h_kv, d), packed (S, h_kv, d): one more key of each sequence.
        guide_mask: (B,) or (S,) bool, True where the guide is present; None: everywhere.
        key_mask: (B, M) bool, True where a key is present; None: everywhere. The padded form's alone.
        scale: of the scores; None is 1/sqrt(d).
        backend: None chooses; "sdpa" or "reference" by name.

    Returns:
        Like ``query``. A query without any key gives zeros; what absent keys hold, NaN too, does not matter.
        Differentiable in every floating input; "reference" any number of times.

    Raises:
        ValueError: shapes, devices or cu_seqlens that do not fit; a backend that is unknown.
        TypeError: an argument that is no tensor, or of another dtype than allowed.

    >>> import torch
    >>> query, key, value = torch.randn(3, 2, 5, 4, 8).unbind()  # two images of five tokens, four heads
    >>> guide_key, guide_value = torch.randn(2, 2, 4, 8).unbind()
    >>> bidirectional_attention(query, key, value, guide_key=guide_key, guide_value=guide_value).shape
    torch.Size([2, 5, 4, 8])
    """
    query, key, value, guide_key, guide_value = cast_for_autocast(query, key, value, guide_key, guide_value)
    masks = (cu_seqlens, guide_mask, key_mask)
    chosen, scale = _plan(signatures(query, key, value, guide_key, guide_value, *masks), scale, backend)
    guide = None if guide_key is None or guide_value is None else (guide_key, guide_value)
    attend = ATTEND[chosen]
    if cu_seqlens is None:
        return attend_padded(attend, query, key, value, guide, guide_mask, key_mask, scale)
    check_cu_seqlens_values("bidirectional_attention", cu_seqlens, query.shape[0])
    return attend_packed(attend, query, key, value, guide, guide_mask, cu_seqlens, scale)


def _request(
    query: Any,
    key: Any,
    value: Any,
    *,
    cu_seqlens: Any = None,
    guide_key: Any = None,
    guide_value: Any = None,
    guide_mask: Any = None,
    key_mask: Any = None,
    **options: Any,
) -> Request:
    query, key, value, guide_key, guide_value = cast_for_autocast(
        query, key, value, guide_key, guide_value, cast=stand_in
    )
    return _check(signatures(query, key, value, guide_key, guide_value, cu_seqlens, guide_mask, key_mask))


def _check(given: tuple[Any, ...]) -> Request:
    """Everything that can be refused from shapes, dtypes and devices alone: signatures as ``_request`` orders them."""
    query, key, value, guide_key, guide_value, cu_seqlens, guide_mask, key_mask = given
    arguments = Arguments("bidirectional_attention")
    q = arguments.tensor("query", query)
    arguments.floating("query", q)
    arguments.rank("query", q, {3: "(T, h, d)", 4: "(B, N, h, d)"})
    packed = len(q.shape) == 3
    k = arguments.companion("key", key, q)
    arguments.rank("key", k, {3: "(T, h_kv, d)"} if packed else {4: "(B, M, h_kv, d)"})
    if k.shape[0] != q.shape[0]:
        what = "rows" if packed else "batch"
        raise arguments.error(f"key has {what} {k.shape[0]}, query has {q.shape[0]}; they must be equal")
    arguments.heads(q, k)
    kv_heads, width = k.shape[-2:]
    v = arguments.companion("value", value, q)
    if v.shape != k.shape:
        raise arguments.error(f"value has shape {v.shape}, key has {k.shape}; they must be equal")
    sequences = _sequences(arguments, packed, q, cu_seqlens)
    if (guide_key is None) != (guide_value is None):
        raise arguments.error("guide_key and guide_value must be given together")
    for name, guide in (("guide_key", guide_key), ("guide_value", guide_value)):
        if guide is not None and arguments.companion(name, guide, q).shape != (sequences, kv_heads, width):
            raise arguments.error(f"{name} has shape {tuple(guide[0])}; it must be {(sequences, kv_heads, width)}")
    if guide_mask is not None and guide_key is None:
        raise arguments.error("guide_mask is given and guide_key is None; there is no guide to mask")
    arguments.mask("guide_mask", guide_mask, q, (sequences,))
    if packed and key_mask is not None:
        raise arguments.error("key_mask is given with packed sequences; it belongs to the padded form")
    arguments.mask("key_mask", key_mask, q, k.shape[:2])
    return Request(q.device.type, q.dtype)


def _sequences(arguments: Arguments, packed: bool, query: Signature, cu_seqlens: Any) -> int:
    """How many sequences there are."""
    if not packed:
        if cu_seqlens is not None:
            raise arguments.error(f"cu_seqlens is given, and query has the padded shape {query.shape}; give (T, h, d)")
        return query.shape[0]
    if cu_seqlens is None:
        raise arguments.error(f"query has the packed shape {query.shape}, and cu_seqlens is None; give (S + 1,)")
    return check_cu_seqlens(arguments, cu_seqlens, query)


@remember
def _plan(given: tuple[Any, ...], scale: float | None, backend: str | None) -> tuple[str, float]:
    request = _check(given)
    width = given[0][0][-1]
    return OPERATOR.select(request, backend), Arguments("bidirectional_attention").scale(scale, width)


OPERATOR: Operator[Request] = Operator(
    "bidirectional_attention",
    (
        Backend("sdpa"),
        Backend("reference", passed_over=lambda request: "the definition"),
    ),
    _request,
    Request,
)
register(bidirectional_attention, OPERATOR)
