"""The same by torch's own fused attention: no kernel of ours was measured to be faster."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, present: Tensor | None, scale: float) -> Tensor:
    """query (B, N, h, d), key and value (B, M, h_kv, d), present broadcasts to (B, N, M) -> (B, N, h, d)."""
    mask = empty = None
    if present is not None:
        # What SDPA makes of a query without any key differs by its backends: give it all of them, and drop the result.
        empty = ~present.any(-1, keepdim=True)
        mask = (present | empty)[:, None]  # (B, 1, N or 1, M)
    # SDPA on the CPU orders its output's strides as the query's and writes rows of stride 1: where elements overlap the
    # two disagree, and the output is never written.
    sizes, strides = query.shape[:3], query.stride()[:3]
    if True in [size > 1 and stride < query.shape[3] for size, stride in zip(sizes, strides, strict=True)]:
        query = query.contiguous()
    # A branch, because sizes may be symbols and the option takes a bool alone.
    grouped = {"enable_gqa": True} if query.shape[2] != key.shape[2] else {}
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        **grouped,
    ).transpose(1, 2)
    return out if empty is None else out.masked_fill(empty[..., None], 0)
