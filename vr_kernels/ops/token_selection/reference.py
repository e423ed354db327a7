"""Token selection in plain PyTorch: the definition, and what runs.

Nothing here waits for a device: all sizes follow from the arguments' shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def select_dominant_tokens(scores: Tensor, count: int) -> Tensor:
    """(B, N) -> (B, count) ascending: the highest scores, of equal ones the lower index, a NaN as -inf."""
    ranking = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    return ranking[:, :count].sort(dim=-1).values


def take_tokens(hidden: Tensor, index: Tensor) -> Tensor:
    """Rows of each sequence: hidden (B, N, ...) and index (B, K) int64 -> (B, K, ...).

    >>> take_tokens(torch.tensor([[10, 20, 30], [40, 50, 60]]), torch.tensor([[2, 0], [1, 1]]))
    tensor([[30, 10],
            [50, 50]])
    """
    # Not Tensor.gather, whose gradient adds in an order that varies on CUDA.
    return hidden[torch.arange(hidden.shape[0], device=hidden.device)[:, None], index]


def remaining_tokens(kept: Tensor, length: int) -> Tensor:
    """The rows of 0 ... length - 1 that are not in kept (B, K), ascending: (B, length - K). None may repeat in kept.

    >>> remaining_tokens(torch.tensor([[3, 1]]), 5)
    tensor([[0, 2, 4]])
    """
    is_kept = torch.zeros(kept.shape[0], length, dtype=torch.uint8, device=kept.device).scatter(1, kept, 1)
    return is_kept.argsort(dim=-1, stable=True)[:, : length - kept.shape[1]]


def merge_contextual_tokens(
    hidden: Tensor, metric: Tensor, count: int, *, kept: Tensor, merge: str
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (B, N, D), metric (B, N, d_m), kept (B, K) -> tokens (B, C, D), targets (B, C), assignment (B, N)."""
    rest = remaining_tokens(kept, hidden.shape[1])  # (B, R)
    if count == 0:
        return hidden[:, :0], rest[:, :0], rest.new_full(hidden.shape[:2], -1)
    step = max(1, rest.shape[1] // count)
    place = torch.arange(rest.shape[1], device=rest.device)
    is_target = (place % step == 0) & (place < count * step)  # (R,), C of them
    targets = rest[:, ::step][:, :count]  # (B, C)
    cluster = torch.where(is_target, place // step, nearest_targets(metric, rest, targets))  # (B, R)
    assignment = rest.new_full(hidden.shape[:2], -1).scatter(1, rest, cluster)
    if merge == "mean":
        tokens = cluster_means(hidden, rest, cluster, count, rest.shape[1])  # (B, C, D)
    else:
        joined = cluster.masked_fill(is_target, count)  # after all clusters, and so left out
        tokens = take_tokens(hidden, targets) + cluster_means(hidden, rest, joined, count, rest.shape[1] - count)
    return tokens.to(hidden.dtype), targets, assignment


def nearest_targets(metric: Tensor, rest: Tensor, targets: Tensor) -> Tensor:
    """For each row of rest (B, R) the number of the most similar of targets (B, C), the first of equal ones: (B, R)."""
    unit = F.normalize(take_tokens(metric, rest).double(), dim=-1)  # (B, R, d_m)
    target_unit = F.normalize(take_tokens(metric, targets).double(), dim=-1)  # (B, C, d_m)
    return (unit @ target_unit.mT).mul(2.0**24).round().argmax(dim=-1)


def cluster_means(hidden: Tensor, rows: Tensor, cluster: Tensor, count: int, members: int) -> Tensor:
    """The mean of each cluster's rows in float32, zero where it has none; float64 for float64.

    hidden (B, N, D), rows (B, R) of it, cluster (B, R) of each -> (B, C, D). Of each sequence the first ``members``
    rows in the order of their clusters take part: those of no cluster come last. Rows are read where they lie, and no
    other is read: a product with zeros and ones would carry an infinity from any row into every cluster.
    """
    batch, length = hidden.shape[:2]
    order = cluster.argsort(dim=-1, stable=True)[:, :members]  # (B, M)
    sizes = (cluster[..., None] == torch.arange(count, device=cluster.device)).sum(1)  # (B, C)
    sequence = torch.arange(batch, device=rows.device)[:, None]
    bags = rows.gather(1, order) + length * sequence  # (B, M) rows of all sequences' table
    begins = sizes.cumsum(1) - sizes + members * sequence  # (B, C) places in bags
    # embedding_bag would round a sum to float16 before it divides, and overflow.
    table = hidden.flatten(0, 1).to(torch.promote_types(hidden.dtype, torch.float32))  # a copy of half precision alone
    means = F.embedding_bag(bags.flatten(), table, begins.flatten(), mode="mean")
    return means.view(batch, count, hidden.shape[2])
