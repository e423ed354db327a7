"""``local_cross_attention``: every vision token reads its own window of the encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vr_kernels.ops._arguments import Arguments, check_index_values, remember, signatures
from vr_kernels.ops._dispatch import Operator, register
from vr_kernels.ops._registration import cast_for_autocast, stand_in, wrapped
from vr_kernels.ops._windows import WindowRequest, typical_request, windows_of
from vr_kernels.ops.local_cross_attention import absorbed, op, reference, unabsorbed
from vr_kernels.ops.local_cross_attention.backends import BACKENDS

__all__ = ["local_cross_attention"]

# Plain PyTorch: any device, differentiable as PyTorch is.
COMPOSITE = {
    "reference": reference.local_cross_attention,
    "absorbed": absorbed.local_cross_attention,
    "unabsorbed": unabsorbed.local_cross_attention,
}


def local_cross_attention(
    query: Tensor,
    features: Tensor | Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    *,
    num_heads: int,
    window_index: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    norm_groups: str = "all",
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    saliency_on: str = "value",
    scale: float | None = None,
    return_attention: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-attention of each token with its own window of several encoder levels (Vision Remember v2, §3.2, Eq. 2).

    ``o_n = sum_j softmax_j(scale * q_n . (W_k f_j + b_k) + bias_j) * sigma_j * (W_v f_j + b_v)`` a head, f_j the
    levels' concatenation at slot j of token n's window, layer-normalised if asked. The projections are absorbed into
    the query and the output, so that they run once a token and not once a feature: s*s times less work, the same
    function.

    Args:
        query: (B, n_h, n_w, E) in the grid form, (N, E) in the indexed form, already projected; E = num_heads * d.
            float32, bfloat16, float16 or float64.
        features: one tensor or a sequence of L levels, (B, H, W, D_l) or (M, D_l), any strides; C = sum of D_l. In the
            grid form H and W are whole multiples of n_h and n_w.
        key_weight, value_weight: (E, C), as ``nn.Linear`` keeps them.
        num_heads: h, a divisor of E.
        window_index: (N, K) int32 or int64 rows of features, -1 = absent; the indexed form needs it (see
            ``window_index_from_grid``). Values are checked on the CPU; a row outside the table is never read.
        key_bias, value_bias: (E,). The key bias cancels in the softmax: it is accepted, and its gradient is zero.
        norm_weight, norm_bias: (C,), LayerNorm of the features before both projections; none without norm_weight.
        norm_eps: LayerNorm's epsilon. norm_groups: statistics over "all" C channels, or over each "level".
        attention_bias: (h, K) or (N, h, K), added to the scaled scores.
        saliency: (B, H, W) or (M,), v1's Eq. 3; not renormalised.
        saliency_on: "value" multiplies values after their projection and bias, "feature" the features before W_v only.
        scale: of the scores; None is 1/sqrt(d).
        return_attention: also return the attention weights, (..., h, K), before the saliency.
        backend: None chooses by measurement (see ``vr_kernels.explain``); "cpu", "triton", "triton_fused", "cuda",
            "cuda_fused", "unabsorbed", "absorbed" or "reference" by name: it runs or it raises.

    query, features and weights share one dtype; biases, norm and saliency have that one or float32.

    Returns:
        (B, n_h, n_w, E) or (N, E) in the query's dtype; with ``return_attention`` a tuple (out, attention). A token
        without any key returns zeros. Differentiable once, in reverse mode, in every floating input; frozen features
        cost nothing in the backward pass.

    Raises:
        ValueError: shapes, devices, options or index values that do not fit; a backend unknown or unable to run.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation of the compiled backends.

    >>> import torch
    >>> levels = [torch.randn(1, 6, 6, 32) for _ in range(3)]  # three encoder levels
    >>> query, w_k, w_v = torch.randn(1, 2, 2, 64), torch.randn(64, 96), torch.randn(64, 96)
    >>> local_cross_attention(query, levels, w_k, w_v, num_heads=4).shape  # 2x2 tokens, windows of 3x3
    torch.Size([1, 2, 2, 64])
    """
    levels = [*features] if isinstance(features, (list, tuple)) else [features]
    query, levels, key_weight, value_weight = cast_for_autocast(query, levels, key_weight, value_weight)
    biases = (key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency)
    given = signatures(query, key_weight, value_weight, window_index, *biases, *levels)
    request, chosen, scale = _plan(
        given,
        wrapped(key_weight, value_weight),
        num_heads,
        norm_groups,
        saliency_on,
        norm_eps,
        scale,
        return_attention,
        backend,
    )
    if chosen in COMPOSITE:
        check_index_values("local_cross_attention", window_index, request.windows.row_count)
        out, attention = COMPOSITE[chosen](
            query,
            levels,
            key_weight,
            value_weight,
            num_heads=num_heads,
            windows=request.windows,
            window_index=window_index,
            key_bias=key_bias,
            value_bias=value_bias,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            norm_eps=norm_eps,
            norm_groups=norm_groups,
            attention_bias=attention_bias,
            saliency=saliency,
            saliency_on=saliency_on,
            scale=scale,
        )
    else:
        options = (num_heads, norm_eps, norm_groups == "level", saliency_on == "feature", scale)
        tensors = (query, levels, key_weight, value_weight, window_index, *biases)
        out, attention = op.run(*tensors, *options, chosen)
    return (out, attention.to(query.dtype)) if return_attention else out


def _request(
    query: Any,
    features: Any,
    key_weight: Any,
    value_weight: Any,
    *,
    num_heads: int,
    window_index: Any = None,
    key_bias: Any = None,
    value_bias: Any = None,
    norm_weight: Any = None,
    norm_bias: Any = None,
    norm_groups: str = "all",
    attention_bias: Any = None,
    saliency: Any = None,
    saliency_on: str = "value",
    **options: Any,
) -> WindowRequest:
    subclass = wrapped(key_weight, value_weight)
    levels = [*features] if isinstance(features, (list, tuple)) else [features]
    query, levels, key_weight, value_weight = cast_for_autocast(query, levels, key_weight, value_weight, cast=stand_in)
    biases = (key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency)
    given = signatures(query, key_weight, value_weight, window_index, *biases, *levels)
    return _check(given, subclass, num_heads, norm_groups, saliency_on)


def _check(
    given: tuple[Any, ...], subclass: str | None, num_heads: int, norm_groups: str, saliency_on: str
) -> WindowRequest:
    """All that can be refused from shapes, dtypes, devices and options: signatures as ``_request`` orders them."""
    query, key_weight, value_weight, window_index, *biases = given[:10]
    features = given[10:]
    arguments = Arguments("local_cross_attention")
    q = arguments.tensor("query", query)
    arguments.floating("query", q)
    arguments.rank("query", q, {2: "(N, E)", 4: "(B, n_h, n_w, E)"})
    levels = arguments.levels("features", features, q)
    rank = len(q.shape)
    arguments.rank("features", levels[0], {rank: "(B, H, W, D) a level" if rank == 4 else "(M, D) a level"})
    width, channels = q.shape[-1], sum(level.shape[-1] for level in levels)
    if type(num_heads) is not int or num_heads < 1 or width == 0 or width % num_heads != 0:
        raise arguments.error(
            f"num_heads is {num_heads!r}, query has width {width}; it must be an int, a positive divisor of it"
        )
    for name, weight in (("key_weight", key_weight), ("value_weight", value_weight)):
        got = arguments.companion(name, weight, q)
        if got.shape != (width, channels):
            raise arguments.error(
                f"{name} has shape {got.shape}; it must be (E, C) = {(width, channels)}, "
                "the query's width by the features' widths together"
            )
    index = None if window_index is None else arguments.index("window_index", window_index, q)
    rows = levels[0].shape[:-1]
    windows = windows_of(arguments, q.shape[:-1], "features", rows, index)
    key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency = biases
    arguments.auxiliary("key_bias", key_bias, q, [(width,)])
    arguments.auxiliary("value_bias", value_bias, q, [(width,)])
    arguments.auxiliary("norm_weight", norm_weight, q, [(channels,)])
    if norm_bias is not None and norm_weight is None:
        raise arguments.error("norm_bias is given and norm_weight is None; a LayerNorm needs norm_weight")
    arguments.auxiliary("norm_bias", norm_bias, q, [(channels,)])
    bias_shapes = [(num_heads, windows.slots), (windows.count, num_heads, windows.slots)]
    arguments.auxiliary("attention_bias", attention_bias, q, bias_shapes)
    arguments.auxiliary("saliency", saliency, q, [rows])
    arguments.choice("norm_groups", norm_groups, ("all", "level"))
    arguments.choice("saliency_on", saliency_on, ("value", "feature"))
    return WindowRequest(
        q.device.type, q.dtype, subclass, windows=windows, heads=num_heads, channels=channels, levels=len(levels)
    )


@remember
def _plan(
    given: tuple[Any, ...],
    subclass: str | None,
    num_heads: int,
    norm_groups: str,
    saliency_on: str,
    norm_eps: float,
    scale: float | None,
    return_attention: bool,
    backend: str | None,
) -> tuple[WindowRequest, str, float]:
    request = _check(given, subclass, num_heads, norm_groups, saliency_on)
    arguments = Arguments("local_cross_attention")
    arguments.number("norm_eps", norm_eps, optional=False, least=0)
    arguments.flag("return_attention", return_attention)
    head_dim = given[0][0][-1] // num_heads
    return request, OPERATOR.select(request, backend), arguments.scale(scale, head_dim)


OPERATOR = Operator("local_cross_attention", BACKENDS, _request, typical_request)
register(local_cross_attention, OPERATOR)
