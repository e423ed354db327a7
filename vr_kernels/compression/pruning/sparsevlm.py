"""SparseVLM's rule (arXiv 2410.04417): relevant text rates the vision tokens, and some of the dropped are recycled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.compression.pruning.ranking import attention_of_rows, check_mask
from vr_kernels.ops._arguments import Arguments
from vr_kernels.ops.token_selection import select_dominant_tokens
from vr_kernels.ops.token_selection.reference import cluster_means

__all__ = ["density_peak_means", "rate_by_text", "recycle", "text_raters"]


def text_raters(embeddings: Tensor, vision: Tensor, valid: Tensor | None = None) -> Tensor:
    """Which text tokens rate the vision tokens of their sequence: those that are relevant to the image above the mean.

    Relevance is the softmax over the text, for each vision token, of its product with the text tokens' embeddings,
    averaged over the vision tokens. The text is what stands behind the last vision token, so that every rater sees all
    of them. A sequence with no text there is rated by its last row.

    Args:
        embeddings: (B, N, D), what the decoder gets; float32, bfloat16, float16 or float64.
        vision: (B, N) bool, the vision tokens.
        valid: (B, N) bool, False at padding; None: no padding.

    Returns:
        (B, N) bool, at least one in each sequence that has a valid row. Not differentiable.

    Raises:
        ValueError: a mask of another shape. TypeError: one that is not bool.

    >>> embeddings = torch.eye(5)[[0, 1, 1, 1, 2]][None]  # the token behind the two vision tokens is like them
    >>> text_raters(embeddings, torch.tensor([[False, True, True, False, False]]))
    tensor([[False, False, False,  True, False]])
    """
    check_mask("text_raters", "vision", vision, embeddings.shape[:2])
    valid = torch.ones_like(vision) if valid is None else valid
    embeddings = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
    raters = torch.zeros_like(vision)
    for b in range(vision.shape[0]):
        images, rows = vision[b].nonzero()[:, 0], valid[b].nonzero()[:, 0]
        text = rows[rows > images[-1]] if len(images) > 0 else rows[:0]
        if len(text) == 0:
            raters[b, rows[-1:]] = True
            continue
        products = embeddings[b, images] @ embeddings[b, text].mT  # (vision tokens, text tokens)
        relevance = products.softmax(1).mean(0)
        # Of one token, or of equal ones, none is above the mean: then all of them rate.
        above = relevance > relevance.mean()
        raters[b, text] = above | ~above.any()
    return raters


def rate_by_text(queries: Sequence[Tensor], key: Tensor, raters: Tensor, valid: Tensor | None = None) -> Tensor:
    """The attention that the raters of each sequence pay, averaged over heads and raters.

    Args:
        queries: of each sequence its raters' (R, h, d), in order, after RoPE.
        key: (B, N, h_kv, d), after RoPE; h_kv divides h.
        raters: (B, N) bool, ``text_raters``.
        valid: (B, N) bool, False at padding; None: no padding.

    Returns:
        (B, N) float32 (float64 for float64). No gradient.

    Raises:
        ValueError: a mask of another shape; more or fewer queries than sequences, or than a sequence has raters.
        TypeError: a mask that is not bool.

    >>> raters = torch.tensor([[False, False, True, True]])
    >>> rate_by_text([torch.randn(2, 4, 8)], torch.randn(1, 4, 2, 8), raters).shape
    torch.Size([1, 4])
    """
    check_mask("rate_by_text", "raters", raters, key.shape[:2])
    if len(queries) != len(raters):
        raise ValueError(
            f"rate_by_text: queries has {len(queries)} tensors; it must have {len(raters)}, one a sequence"
        )
    scores = []
    for b, query in enumerate(queries):
        rows = raters[b].nonzero()[:, 0]
        if len(query) != len(rows):
            raise ValueError(f"rate_by_text: queries[{b}] has {len(query)} rows; it must have {len(rows)}, one a rater")
        scores.append(attention_of_rows(query, key[b], rows, None if valid is None else valid[b]))
    return torch.stack(scores)


def recycle(dropped: Tensor, scores: Tensor, *, share: float = 0.3, tokens_a_cluster: int = 10) -> Tensor:
    """What is left of the vision tokens that one sequence drops: the best of them, merged into a few.

    The int(n * share) + 1 of the highest scores are clustered, m of them into int(m / tokens_a_cluster) + 1 clusters
    (``density_peak_means``).

    Args:
        dropped: (n, D) hidden states; float32, bfloat16, float16 or float64.
        scores: (n,) by which they were dropped.
        share: of the dropped, which part is recycled; 0: none.
        tokens_a_cluster: how many tokens, about, become one.

    Returns:
        (c, D); c is 0 where n is. Differentiable in dropped; which tokens are merged has no gradient.

    Raises:
        ValueError: more or fewer scores than tokens; a share that is not from 0 to 1; tokens_a_cluster below 1.
        TypeError: one of the last two of another type.

    >>> recycle(torch.randn(276, 8), torch.rand(276)).shape  # 83 of them
    torch.Size([9, 8])
    """
    arguments = Arguments("recycle")
    arguments.share("share", share)
    arguments.integer("tokens_a_cluster", tokens_a_cluster, 1)
    if scores.shape != dropped.shape[:1]:
        raise arguments.error(
            f"scores has shape {tuple(scores.shape)}; it must be {tuple(dropped.shape[:1])}, one a token"
        )
    if share == 0 or len(dropped) == 0:
        return dropped[:0]
    best = select_dominant_tokens(scores[None], min(int(len(dropped) * share) + 1, len(dropped)))[0]
    return density_peak_means(dropped[best], int(len(best) / tokens_a_cluster) + 1)


def density_peak_means(tokens: Tensor, count: int) -> Tensor:
    """The means of ``count`` clusters by density peaks (DPC-KNN), as SparseVLM's public code finds them.

    With distances divided by sqrt(D), a token's density is exp(-mean of the squared distances to its ``count`` nearest,
    itself among them), and its height the distance to the nearest denser token (to the farthest pair's, for the
    densest). The tokens of the highest density * height are centres; every other token joins the nearest centre. Of
    equal densities the first counts as denser: the public code breaks such ties by noise.

    Args:
        tokens: (n, D), n at least count; float32, bfloat16, float16 or float64.
        count: of clusters, at least 1.

    Returns:
        (count, D), the cluster of the highest peak first. Distances and sums are float32 at least. Differentiable in
        tokens; which belong together has no gradient.

    Raises:
        ValueError: a count beyond what there is.

    >>> density_peak_means(torch.tensor([[0.0], [2.0], [9.0], [10.0]]), 2).flatten().tolist()
    [9.5, 1.0]
    """
    if not 1 <= count <= len(tokens):
        raise ValueError(
            f"density_peak_means: count is {count}; it must be from 1 to {len(tokens)}, the tokens there are"
        )
    with torch.no_grad():
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[1] ** 0.5
        density = distance.topk(count, largest=False).values.square().mean(1).neg().exp()
        place = torch.arange(len(tokens), device=tokens.device)
        tied_and_first = (density == density[:, None]) & (place < place[:, None])
        denser = (density > density[:, None]) | tied_and_first  # (n, n): whether column is denser than row
        height = distance.masked_fill(~denser, float(distance.max())).amin(1)
        centres = (density * height).sort(descending=True, stable=True).indices[:count]
        cluster = distance[centres].argmin(0)  # (n,)
        cluster[centres] = torch.arange(count, device=tokens.device)
    return cluster_means(tokens[None], place[None], cluster[None], count, len(tokens))[0].to(tokens.dtype)
