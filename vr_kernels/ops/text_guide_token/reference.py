"""The definition of the text-guided token, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def text_guide_token(hidden_states: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each channel over the text rows: hidden_states (B, T, D), text_mask (B, T).

    Returns the maxima (B, D), zeros without text, and the row of each, (B, D): the lowest of equal ones, -1 without.
    """
    has_text = text_mask.any(1, keepdim=True)  # (B, 1)
    if hidden_states.shape[1] == 0:
        guide = hidden_states.sum(1)
        return guide, has_text.expand_as(guide).long() - 1
    row = hidden_states.masked_fill(~text_mask[..., None], -float("inf")).argmax(1)  # (B, D)
    # Where all text is -inf the first of all rows has won, and need not be text.
    row = row.where(text_mask.gather(1, row), text_mask.long().argmax(1, keepdim=True))
    guide = hidden_states.gather(1, row[:, None]).squeeze(1)
    return guide.masked_fill(~has_text, 0), row.where(has_text, -1)
