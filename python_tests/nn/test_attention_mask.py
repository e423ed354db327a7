"""Whether the bidirectional layer masks its attention: flash attention takes no mask, and a GPU is asked nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vr_kernels import VisionRemember, VisionRememberConfig, VisionTokenMap

MASK = torch.zeros(2, 9, dtype=torch.bool)
MASK[0, :4] = MASK[1, 2:6] = True
TEXT = ~MASK & (torch.arange(9) > 6)
NEWLINES = torch.tensor([[4], [15]])
WHOLE = dataclasses.replace(VisionTokenMap.from_grid(MASK, grid=(2, 2), feature_grid=(4, 4)), newline_rows=NEWLINES)
RAGGED = VisionTokenMap.from_grid(MASK, grid=(1, 2), feature_grid=(4, 4), tiles=[1, 1, 2])


def masks_on_meta(vision_map: VisionTokenMap, text_mask: Tensor | None, **options: Any) -> list[bool]:
    """Whether each call of SDPA in one pass had a mask, on tensors without numbers: looking at one would raise."""
    seen: list[bool] = []

    def attend(*tensors: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        seen.append(attn_mask is not None)
        return original(*tensors, attn_mask=attn_mask, **rest)

    original = F.scaled_dot_product_attention
    config = VisionRememberConfig(hidden_size=8, num_attention_heads=2, layers=("bidirectional",), **options)
    block = VisionRemember(config, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        text_mask = None if text_mask is None else text_mask.to("meta")
        block(torch.empty(*MASK.shape, 8, device="meta"), vision_map.to("meta"), text_mask=text_mask)
    return seen


CASES = [
    pytest.param(WHOLE, None, {}, False, id="no text"),
    pytest.param(WHOLE.with_text(TEXT), TEXT, {}, False, id="text in every sample"),
    pytest.param(WHOLE.with_text(TEXT), TEXT, {"newline_keys": True}, False, id="newlines"),
    pytest.param(WHOLE, TEXT, {}, True, id="text that nobody told it of"),
    pytest.param(WHOLE.with_text(TEXT & (NEWLINES < 5)), TEXT, {}, True, id="a sample without text"),
    pytest.param(RAGGED, None, {}, True, id="images of several sizes"),
    pytest.param(dataclasses.replace(WHOLE, newline_rows=torch.tensor([[4], [-1]])), None, {"newline_keys": True}, True,
                 id="padded newlines"),
    pytest.param(dataclasses.replace(WHOLE, newline_rows=torch.tensor([[4], [-1]])), None, {}, False,
                 id="padded newlines that nobody reads"),
]  # fmt: skip


@pytest.mark.parametrize(("vision_map", "text_mask", "options", "masked"), CASES)
def test_where_nothing_can_be_looked_at_attention_is_masked_only_where_a_key_may_be_missing(
    vision_map: VisionTokenMap, text_mask: Tensor | None, options: dict[str, Any], masked: bool
) -> None:
    assert masks_on_meta(vision_map, text_mask, **options) == [masked]
