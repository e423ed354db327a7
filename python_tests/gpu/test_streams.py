"""Kernels run on the current stream, in its order, and can be captured in a CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from python_tests._cases import Call, map_tensors
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import Draw, Subject
from python_tests.gpu._gpu import moved, need, over_runs

pytestmark = [pytest.mark.gpu, over_runs]


def overwritten(call: Call) -> Call:
    """Buffers like the call's tensors, full of NaN."""
    return map_tensors(call, lambda tensor: torch.full_like(tensor, torch.nan))


def fill(buffers: Any, values: Any) -> None:
    """The floating tensors of ``values`` into those of ``buffers``."""
    if isinstance(buffers, list):
        for buffer, value in zip(buffers, values, strict=True):
            fill(buffer, value)
    elif isinstance(buffers, torch.Tensor) and buffers.is_floating_point():
        buffers.copy_(values)


def test_a_kernel_waits_for_its_own_stream(subject: Subject, backend: str, draw: Draw) -> None:
    need(subject, backend)
    call = moved(subject.call(**draw))
    function = subject.run(backend)
    expected = function(**call)
    buffers = overwritten(call)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: another stream would read NaN by then
        for name in call:
            fill(buffers[name], call[name])
        result = function(**buffers)
    stream.synchronize()
    for got, wanted in zip(result, expected, strict=True):
        assert torch.equal(got, wanted)


def replay(graph: torch.cuda.CUDAGraph, buffers: Call, call: Call) -> None:
    """With the call's numbers in the buffers again, which held NaN meanwhile."""
    for values in (overwritten(call), call):
        for name, value in values.items():
            fill(buffers[name], value)
    graph.replay()
    torch.cuda.synchronize()


def test_a_cuda_graph_replays_with_new_numbers(subject: Subject, backend: str, draw: Draw) -> None:
    need(subject, backend)
    call = moved(subject.call(**draw))
    function = subject.run(backend)
    expected = function(**call)  # compiles, and allocates what is kept
    buffers = map_tensors(call, lambda tensor: tensor.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = function(**buffers)
    replay(graph, buffers, call)
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_cuda_graph_replays_the_gradients(subject: Subject, backend: str, draw: Draw) -> None:
    need(subject, backend)
    call = moved(subject.call(**draw))
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    buffers = map_tensors(call, lambda tensor: tensor.clone())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = evaluate(function, buffers, cotangents)
    replay(graph, buffers, call)
    for name, tensor in captured.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
