"""``local_attention``: every query attends to its own window of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vr_kernels.ops import _cuda, _native
from vr_kernels.ops._arguments import Arguments, check_index_values, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops._triton import support
from vr_kernels.ops._windows import WindowRequest, typical_request, windows_of
from vr_kernels.ops.local_attention import op, reference

__all__ = ["local_attention"]


def local_attention(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    value: Tensor | None = None,
    *,
    window_index: Tensor | None = None,
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_attention: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Windowed attention: each query attends to the K keys of its own window (Vision Remember v2, Eq. 2).

    ``out_n = sum_j softmax_j(scale * q_n . k_j + bias_j) * saliency_j * v_j`` over the window's slots j; the saliency
    is v1's Eq. 3 and is not renormalised. Scores, softmax and sums are float32 (float64 for float64 inputs);
    backend "reference" alone rounds scores to the dtype of its inputs first, as a product of plain PyTorch does.

    Args:
        query: (B, n_h, n_w, h, d) in the grid form, (N, h, d) in the indexed form; float32, bfloat16, float16, float64.
        key: (B, H, W, h_kv, d) or (M, h_kv, d), any strides. H and W are whole multiples of n_h and n_w; h_kv divides
            h. A sequence of levels (B, H, W, D_l) or (M, D_l) is their concatenation, never made, shared by all heads.
        value: (B, H, W, h_kv, d_v) or (M, h_kv, d_v); None: the values are the keys.
        window_index: (N, K) int32 or int64 rows of key, -1 = absent; the indexed form needs it. Values are checked on
            the CPU (not inside compiled graphs); a row outside the table is never read.
        attention_bias: (h, K) or (N, h, K), added to the scaled scores; the query's dtype or float32.
        saliency: (B, H, W) or (M,), multiplies the values; the query's dtype or float32.
        scale: of the scores; None is 1/sqrt(d).
        return_lse: also return the log-sum-exp of the scores, (..., h) float32.
        return_attention: also return the attention weights, (..., h, K) in the query's dtype, before the saliency.
        backend: None chooses; "cpu", "triton", "cuda" or "reference" by name: it runs or it raises.

    Returns:
        (..., h, d_v) in the query's dtype; with ``return_lse``, ``return_attention`` a tuple
        ``(out[, lse][, attention])``. A query without any key returns zeros. Differentiable once, in reverse mode, in
        every floating input.

    Raises:
        ValueError: shapes, devices or index values that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> query, key = torch.randn(1, 2, 2, 4, 8), torch.randn(1, 6, 6, 1, 8)  # 2x2 windows of 3x3 keys
    >>> local_attention(query, key).shape
    torch.Size([1, 2, 2, 4, 8])
    """
    shared = isinstance(key, (list, tuple))
    keys: list[Tensor] = [*key] if shared else [key]  # type: ignore[list-item]
    query, keys, value = cast_for_autocast(query, keys, value)
    given = signatures(query, value, window_index, attention_bias, saliency, *keys)
    request, chosen, scale = _plan(given, shared, scale, return_lse, return_attention, backend)
    if shared:
        keys = [level.unsqueeze(-2) for level in keys]
    values = [] if value is None else [value]
    if chosen == "reference":
        check_index_values("local_attention", window_index, request.windows.row_count)
        out, attention, lse = reference.local_attention(
            query,
            keys,
            values,
            windows=request.windows,
            window_index=window_index,
            attention_bias=attention_bias,
            saliency=saliency,
            scale=scale,
        )
    else:
        out, attention, lse = op.run(query, keys, values, window_index, attention_bias, saliency, scale, chosen)
    extra = (lse,) * return_lse + (attention.to(query.dtype),) * return_attention
    return (out, *extra) if extra else out


def _request(
    query: Any,
    key: Any,
    value: Any = None,
    *,
    window_index: Any = None,
    attention_bias: Any = None,
    saliency: Any = None,
    **options: Any,
) -> WindowRequest:
    shared = isinstance(key, (list, tuple))
    query, keys, value = cast_for_autocast(query, [*key] if shared else [key], value, cast=stand_in)
    return _check(signatures(query, value, window_index, attention_bias, saliency, *keys), shared)


def _check(given: tuple[Any, ...], shared: bool) -> WindowRequest:
    """Everything that can be refused from shapes, dtypes and devices alone: signatures as ``_request`` orders them."""
    query, value, window_index, attention_bias, saliency, *keys = given
    arguments = Arguments("local_attention")
    q = arguments.tensor("query", query)
    arguments.floating("query", q)
    arguments.rank("query", q, {3: "(N, h, d)", 5: "(B, n_h, n_w, h, d)"})
    levels = arguments.levels("key", keys, q)
    rank = len(q.shape) - shared
    form = {
        5: "(B, H, W, h_kv, d)",
        4: "(B, H, W, D) a level",
        3: "(M, h_kv, d)",
        2: "(M, D) a level",
    }[rank]
    arguments.rank("key", levels[0], {rank: form})
    heads = q.shape[-2]
    kv_heads = 1 if shared else levels[0].shape[-2]
    channels = sum(level.shape[-1] for level in levels)
    rows = levels[0].shape[: len(q.shape) - 2]
    arguments.heads(q, levels[0]._replace(shape=(*rows, kv_heads, channels)))
    index = None if window_index is None else arguments.index("window_index", window_index, q)
    windows = windows_of(arguments, q.shape[:-2], "key", rows, index)
    if value is not None:
        v = arguments.companion("value", value, q)
        if v.shape[:-1] != (*rows, kv_heads) or v.shape[-1] == 0:
            raise arguments.error(
                f"value has shape {v.shape}; it must be {(*rows, kv_heads)} and a width of at least 1"
            )
    bias_shapes = [(heads, windows.slots), (windows.count, heads, windows.slots)]
    arguments.auxiliary("attention_bias", attention_bias, q, bias_shapes)
    arguments.auxiliary("saliency", saliency, q, [rows])
    return WindowRequest(q.device.type, q.dtype, windows=windows, heads=heads, channels=channels, levels=len(levels))


@remember
def _plan(
    given: tuple[Any, ...],
    shared: bool,
    scale: float | None,
    return_lse: bool,
    return_attention: bool,
    backend: str | None,
) -> tuple[WindowRequest, str, float]:
    request = _check(given, shared)
    arguments = Arguments("local_attention")
    arguments.flag("return_lse", return_lse)
    arguments.flag("return_attention", return_attention)
    return request, OPERATOR.select(request, backend), arguments.scale(scale, request.channels)


OPERATOR: Operator[WindowRequest] = Operator(
    "local_attention",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=support.refuses_windows, passed_over=experimental),
        Backend("cuda", refuses=_cuda.refuses_windows, passed_over=experimental),
        Backend("reference"),
    ),
    _request,
    typical_request,
)
register(local_attention, OPERATOR)
