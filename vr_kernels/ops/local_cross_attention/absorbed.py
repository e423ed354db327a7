"""The absorbed formula in stock PyTorch: keys and values are never projected (SEMANTICS: o = W_v sum_j p_j f_j).

    s_j = q . W_k f_j = (W_k^T q) . f_j        o = sum_j p_j W_v f_j = W_v (sum_j p_j f_j)

so the two projections run over the queries, s^2 times fewer than the features. The key bias adds the same number to
every score of a query and drops out of the softmax. Each step is one einsum: the baseline that the kernels are
measured against, and the algebra in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops._windows import Windows, gather_windows
from vr_kernels.ops.local_attention.reference import masked_softmax
from vr_kernels.ops.local_cross_attention.features import joined_features


def local_cross_attention(
    query: Tensor,
    features: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    *,
    num_heads: int,
    windows: Windows,
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
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference's function; the gradient of ``key_bias`` is exactly zero."""
    q = query.reshape(windows.count, num_heads, query.shape[-1] // num_heads)  # (N, h, d)
    joined = joined_features(features, norm_weight, norm_bias, norm_eps, norm_groups)
    window, present = gather_windows(joined, windows, window_index)  # (N, K, C), (N, K)
    w_k = key_weight.unflatten(0, (num_heads, -1))  # (h, d, C)
    w_v = value_weight.unflatten(0, (num_heads, -1))

    u = torch.einsum("nhd,hdc->nhc", q, w_k)  # (N, h, C)
    scores = torch.einsum("nhc,nkc->nhk", u, window)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if attention_bias is not None:
        scores = scores + attention_bias
    if key_bias is not None:
        scores = scores + 0 * key_bias.sum()  # keeps the parameter in the graph, with its gradient of zero
    attention, _ = masked_softmax(scores, present[:, None, :])
    weights = attention
    if saliency is not None:
        weights = weights * gather_windows(saliency, windows, window_index)[0].unsqueeze(1)  # (N, h, K)
    g = torch.einsum("nhk,nkc->nhc", weights.to(window.dtype), window)  # (N, h, C)
    out = torch.einsum("nhc,hdc->nhd", g, w_v)
    if value_bias is not None:
        total = (weights if saliency_on == "value" else attention).sum(-1, keepdim=True)  # (N, h, 1)
        out = out + (total * value_bias.view(num_heads, -1)).to(out.dtype)
    return out.reshape(query.shape), attention.reshape(*windows.leading, num_heads, windows.slots)
