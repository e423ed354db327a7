"""The block in training: checkpointing, autocast, compilation, precision, and two processes that share it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from python_tests.nn._vision_batch import GRID, WIDTHS, Batch, batch
from python_tests.nn.test_vision_remember import block_of
from vr_kernels import VisionRemember, VisionTokenMap

Gradients = dict[str, Tensor]
ROOT = Path(__file__).parents[2]


def arguments(inputs: Batch) -> tuple[Any, ...]:
    return inputs.hidden_states, inputs.vision_map, inputs.levels


def gradients(module: nn.Module, out: Tensor) -> Gradients:
    module.zero_grad()
    out.square().sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    block, inputs = block_of(torch.float32, bias=True), batch().to(torch.float32)
    inputs.hidden_states.requires_grad_()  # as after a first layer; reentrant checkpoints ask for it

    def forward(hidden_states: Tensor) -> Tensor:
        return block(hidden_states, inputs.vision_map, inputs.levels, text_mask=inputs.text_mask)

    expected = gradients(block, forward(inputs.hidden_states))
    d_hidden, inputs.hidden_states.grad = inputs.hidden_states.grad, None
    found = gradients(block, checkpoint(forward, inputs.hidden_states, use_reentrant=reentrant))
    assert_equal(found, expected)
    assert torch.equal(inputs.hidden_states.grad, d_hidden)


@pytest.mark.parametrize("options", [{}, {"residual": "gate", "query_norm": "layer"}, {"query_norm": "none"}], ids=str)
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_computes_in_bfloat16_and_keeps_the_stream(options: dict[str, Any], stream: torch.dtype) -> None:
    block, inputs = block_of(torch.float32, **options), batch().to(torch.float32)
    exact = block(*arguments(inputs), text_mask=inputs.text_mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(inputs.hidden_states.to(stream), inputs.vision_map, inputs.levels, text_mask=inputs.text_mask)
    assert out.dtype == stream
    others = ~inputs.vision_mask
    assert torch.equal(out[others], inputs.hidden_states.to(stream)[others])
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()
    for name, gradient in gradients(block, out).items():
        assert gradient.dtype == torch.float32, name
        assert gradient.any(), name


@pytest.mark.parametrize("options", [{}, {"literal": True, "num_heads": None, "residual": "gate"}], ids=str)
@pytest.mark.parametrize("unpad", [False, True])
def test_it_compiles_to_one_graph(options: dict[str, Any], unpad: bool) -> None:
    torch.compiler.reset()
    block = block_of(torch.float32, **options)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        inputs = batch(unpad=unpad, seed=seed).to(torch.float32)
        results = [f(*arguments(inputs), text_mask=inputs.text_mask) for f in (block, compiled)]
        torch.testing.assert_close(results[1], results[0])
        expected, found = (gradients(block, result) for result in results)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_compiled_block_takes_other_batches() -> None:
    torch.compiler.reset()
    block = block_of(torch.float32)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for length, images in ((14, 1), (15, 2), (19, 3), (9, 0)):
        mask = torch.arange(length)[None] < 6 * images
        vision_map = VisionTokenMap.from_grid(mask, grid=GRID, feature_grid=(4, 9))
        levels = [torch.randn(images, 4, 9, width) for width in block.config.feature_dims]
        hidden_states = torch.randn(1, length, 12)
        call = (hidden_states, vision_map, levels)
        torch.testing.assert_close(compiled(*call, text_mask=~mask), block(*call, text_mask=~mask))


@pytest.mark.parametrize("growing", [False, True], ids=["of one shape", "of other shapes"])
def test_a_compiled_block_is_not_compiled_again_for_every_map(growing: bool) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(block_of(torch.float32), fullgraph=True, backend=counter)
    for i in range(8):
        length = 26 + i * growing
        mask = torch.arange(length)[None] % 20 < 6
        vision_map = VisionTokenMap.from_grid(mask, grid=GRID, feature_grid=(4, 9), tiles=[2])
        compiled(torch.randn(1, length, 12), vision_map, [torch.randn(2, 4, 9, width) for width in WIDTHS])
    assert counter.frame_count == 1 + growing


def test_features_that_learn_get_their_gradient() -> None:
    block, inputs = block_of(), batch()
    for level in inputs.levels:
        level.requires_grad_()
    block(*arguments(inputs), text_mask=inputs.text_mask).square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in inputs.levels)


def test_the_gradient_is_that_of_the_formula() -> None:
    options = {"bias": True, "residual": "gate", "window": (2, 3), "window_position": "learned", "expansion": "mlp"}
    block, inputs = block_of(**options, saliency="value"), batch()
    names = [name for name, _ in block.named_parameters()]
    leaves = [inputs.hidden_states.requires_grad_(), *block.parameters()]

    def value() -> Tensor:
        out = block(*arguments(inputs), saliency=inputs.saliency, text_mask=inputs.text_mask)
        return out.sin().sum()

    found = torch.autograd.grad(value(), leaves)
    generator = torch.Generator().manual_seed(1)
    for name, leaf, gradient in zip(["hidden_states", *names], leaves, found, strict=True):
        direction = torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                leaf.add_(direction, alpha=step)
                values.append(value())
            leaf.add_(direction, alpha=1e-5)
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7, msg=name)


# How many images the two processes have: a batch of text alone must not keep the other waiting.
SPREADS = {"both have images": (1, 1), "one has none": (1, 0)}


def half(inputs: Batch, rank: int, images: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Samples 0 and 1 or 2 and 3, with an image in the first of them, or without."""
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 5:11] = images == 1
    vision_map = VisionTokenMap.from_grid(mask, grid=GRID, feature_grid=(4, 9))
    levels = [level[rank : rank + 1] for level in inputs.levels] if images else None
    samples = slice(2 * rank, 2 * rank + 2)
    return (inputs.hidden_states[samples], vision_map, levels), {"text_mask": inputs.text_mask[samples]}


def shared_block() -> tuple[VisionRemember, Batch]:
    torch.manual_seed(0)
    return block_of(torch.float32, bias=True, residual="gate"), batch().to(torch.float32)


def worker(rank: int, folder: str, way: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    block, inputs = shared_block()
    model: nn.Module = DistributedDataParallel(block) if way == "ddp" else block
    if way == "fsdp":
        fully_shard(block, mesh=dist.init_device_mesh("cpu", (2,)))
    results = {}
    for spread, images in SPREADS.items():
        positional, named = half(inputs, rank, images[rank])
        model.zero_grad()  # before the forward pass, after which a sharded module shows its gathered parameters
        found = gradients(block, model(*positional, **named))
        results[spread] = {k: g.full_tensor() if isinstance(g, DTensor) else g for k, g in found.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    # A model that outlives its process group may wait for it forever, and so may a process whose peer has gone.
    del model, block, found, positional, named
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_get_the_gradient_of_one(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # where the other processes find this file
    mp.spawn(worker, (str(tmp_path), way), nprocs=2)
    block, inputs = shared_block()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for spread, images in SPREADS.items():
        halves = [half(inputs, rank, images[rank]) for rank in range(2)]
        alone = [gradients(block, block(*positional, **named)) for positional, named in halves]
        for name in alone[0]:
            for rank in range(2):
                assert alone[rank][name].any() == (images[rank] > 0 and not name.endswith("key_bias")), name
            for rank in range(2):
                mean = (alone[0][name] + alone[1][name]) / 2
                torch.testing.assert_close(found[rank][spread][name], mean, msg=f"{spread}, {name}")
