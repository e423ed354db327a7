"""``attention_density``: how much more attention the vision tokens receive than their number alone would bring."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, signatures


def attention_density(attention: Tensor, vision_mask: Tensor) -> Tensor:
    """Attention density (Vision Remember v1, Eq. 1): the vision tokens' attention over their share of the sequence.

    ``(sum_{j in V} a_j / sum_j a_j) / (|V| / S)`` for a sequence of S tokens, |V| of them vision tokens: 1 where they
    receive what as many average tokens would. Plain PyTorch, differentiable in ``attention``.

    Args:
        attention: (..., S), what each token receives: of ``attention_received`` (every row
            asks) or ``attention_importance`` (the rows that matter ask, such as the answer's).
        vision_mask: (..., S) bool or a shape that broadcasts to it, True at the vision tokens.

    Returns:
        (...), in attention's dtype. NaN for a sequence without vision tokens, which has no density.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: an argument that is no tensor, or of another dtype than allowed.

    >>> import torch
    >>> attention = torch.tensor([[0.1, 0.3, 0.3, 0.3]])
    >>> attention_density(attention, torch.tensor([False, True, True, False]))
    tensor([1.2000])
    """
    arguments = Arguments("attention_density", "attention")
    given, mask = signatures(attention, vision_mask)
    a = arguments.tensor("attention", given)
    arguments.floating("attention", a)
    m = arguments.tensor("vision_mask", mask)
    arguments.same_device("vision_mask", m, a)
    if m.dtype != torch.bool:
        raise TypeError(f"attention_density: vision_mask is {m.dtype}; it must be torch.bool")
    if not a.shape or not m.shape or m.shape[-1] != a.shape[-1]:
        raise arguments.error(f"vision_mask has shape {m.shape}, attention has {a.shape}; both must end in the tokens")
    if any(1 not in sizes and sizes[0] != sizes[1] for sizes in zip(m.shape[::-1], a.shape[::-1], strict=False)):
        raise arguments.error(f"vision_mask has shape {m.shape}; it must broadcast with attention's {a.shape}")
    weights = attention.to(torch.promote_types(attention.dtype, torch.float32))
    share = vision_mask.to(weights.dtype).mean(-1)
    received = weights.masked_fill(~vision_mask, 0.0).sum(-1) / weights.sum(-1)
    return (received / share).to(attention.dtype)
