"""``BlockCapture``: which states are which level, and gradients that would be cut; threads that share an encoder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels.integrations.vision_remember.capture import BlockCapture
from vr_kernels.integrations.vision_remember.families import FAMILIES


def encoder() -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


def run(blocks: nn.ModuleList, x: Tensor) -> list[Tensor]:
    states = [x]
    for block in blocks:
        states.append(block(states[-1]))
    return states


def test_level_k_is_what_block_k_returns() -> None:
    blocks, x = encoder(), torch.randn(2, 5, 4)
    with BlockCapture(blocks, (3, 0, 1), first_row=1) as captured:
        states = run(blocks, x)
    for level, kept in zip((3, 0, 1), captured.features, strict=True):
        assert torch.equal(kept, states[level][:, 1:])


def test_hooks_go_with_the_context_even_after_an_error() -> None:
    blocks = encoder()
    with pytest.raises(RuntimeError, match="shapes"), BlockCapture(blocks, (0, 2)):
        run(blocks, torch.randn(2, 5, 3))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_gradients_that_reentrant_checkpointing_would_cut_are_an_error() -> None:
    blocks, x = encoder(), torch.randn(2, 4, requires_grad=True)
    with BlockCapture(blocks, (1,)), pytest.raises(RuntimeError, match="use_reentrant"):
        checkpoint(blocks[0], x, use_reentrant=True)
    blocks.requires_grad_(False)
    with BlockCapture(blocks, (1,)):
        checkpoint(blocks[0], x, use_reentrant=True)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "internvl"])
def test_threads_that_generate_at_once_each_read_their_own_image(kind: str) -> None:
    """Their contexts stand on one encoder at the same time, and each block waits for the other thread."""
    model = tiny.patched(kind)
    prompts = [tiny.batch(model, kind, [[image]]) for image in (0, 3)]

    def logits(inputs: Any) -> Tensor:
        asked: dict[str, Any] = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        return model.generate(**inputs, **asked, do_sample=False).logits[0]  # type: ignore[no-any-return]

    expected = [logits(inputs) for inputs in prompts]
    together = threading.Barrier(2, timeout=20)

    def meet(block: nn.Module, args: Any) -> None:
        together.wait()

    for block in FAMILIES[kind].blocks(model.model):
        block.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as threads:
        got = list(threads.map(logits, prompts))
    for alone, beside in zip(expected, got, strict=True):
        torch.testing.assert_close(beside, alone)
