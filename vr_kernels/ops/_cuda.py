"""``WindowKernel`` by csrc/cuda, and the calls that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._dispatch import Request, refuses_tensors
from vr_kernels.ops._inverse_index import readers_of_rows
from vr_kernels.ops._layout import unit_inner
from vr_kernels.ops._native import address
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._window_native import rows, struct
from vr_kernels.ops._windows import WindowRequest

# csrc/cuda/local_attention.h: kMaxSlots and kMaxLevels
LARGEST_WINDOW, MOST_LEVELS = 64, 8


def refuses(request: Request) -> str | None:
    """Why the CUDA kernels cannot run a call."""
    return refuses_tensors(request, "CUDA", ["cuda"]) or _unavailable()


def refuses_windows(request: WindowRequest) -> str | None:
    """Why the windowed CUDA kernels cannot run a call."""
    if request.windows.slots > LARGEST_WINDOW:
        return f"the CUDA kernels take windows of up to {LARGEST_WINDOW} keys, these have {request.windows.slots}"
    if request.levels > MOST_LEVELS:
        return f"the CUDA kernels take up to {MOST_LEVELS} levels, these are {request.levels}"
    return refuses(request)


def _unavailable() -> str | None:
    """Why this build cannot serve the current device, or None. A traced graph takes the answer of its first trace."""
    missing = _native.unavailable()
    if missing is not None:
        return missing
    build = _native.module().build_info()
    if not build["cuda"]:
        return "vr_kernels._C was built without a CUDA compiler; reinstall vr-kernels where nvcc is on PATH"
    if torch.cuda.is_available():
        return lacks_architecture(torch.cuda.get_device_capability(), build["cuda_architectures"])
    return None


# What torch.compiler.assume_constant_result does; calling it would import the compiler along with this package.
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lacks_architecture(capability: tuple[int, int], architectures: Iterable[str]) -> str | None:
    """Why code for ``architectures`` (nvcc's names: sm_90 is machine code, compute_90 PTX) cannot run, or None.

    Machine code runs on its own major version from its own minor one on, PTX on everything newer; what is specific to
    one architecture (sm_90a) there alone.
    """
    device = "sm_{}{}".format(*capability)
    names = list(architectures)
    for name in names:
        kind, major, minor, specific = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name).groups()  # type: ignore[union-attr]
        built = (int(major), int(minor))
        if capability == built:
            return None
        if not specific and capability > built and (kind == "compute" or capability[0] == built[0]):
            return None
    return f"vr_kernels._C has code for {', '.join(names)}, and the device is {device}"


class Launcher:
    """Where kernels come from and run: the current stream of the tensors' device."""

    def library(self) -> Any:
        """The module that holds the kernels."""
        return _native.module()

    def stream(self, tensor: Tensor) -> tuple[int, int]:
        """Device index and stream handle."""
        return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


class CudaKernel(Launcher):
    """``WindowKernel`` by csrc/cuda."""

    def forward(
        self, problem: WindowProblem, query: Tensor, out: Tensor, attention: Tensor, lse: Tensor | None
    ) -> None:
        problem = readable(problem)
        buffers = map(rows, (query, out, attention, lse))
        self.library().cuda_local_attention_forward(struct(problem, query), *buffers, self.stream(query))

    def backward(
        self,
        problem: WindowProblem,
        grad_out: Tensor,
        attention: Tensor,
        grad_attention: Tensor | None,
        grad_lse: Tensor | None,
        value_constant: Tensor | None,
        grad_scores: Tensor,
        grad_query: Tensor | None,
        pooled: Tensor | None,
        grad_slots: Tensor | None,
    ) -> None:
        problem = readable(problem)
        slot_products = None if grad_slots is None else torch.empty_like(grad_scores)
        given = (grad_out, attention, grad_attention, grad_lse, value_constant)
        made = (grad_scores, grad_query, pooled, slot_products)
        self.library().cuda_local_attention_backward(
            struct(problem, grad_out), *map(rows, given), *map(rows, made), self.stream(grad_out)
        )
        if grad_slots is not None and slot_products is not None:
            grad_slots += slot_products.sum(1)

    def feature_gradient(
        self,
        problem: WindowProblem,
        query: Tensor,
        grad_out: Tensor,
        attention: Tensor,
        grad_scores: Tensor,
        grad_keys: Tensor,
        grad_values: Tensor | None,
    ) -> None:
        problem = readable(problem)
        index = problem.index_of_block()
        readers = (None, None) if index is None else readers_of_rows(index, problem.windows.row_count)
        given = (query, grad_out, attention, grad_scores)
        self.library().cuda_local_attention_feature_gradient(
            struct(problem, query),
            *map(rows, given),
            address(grad_keys),
            address(grad_values),
            (address(readers[0]), address(readers[1])),
            self.stream(query),
        )


def readable(problem: WindowProblem) -> WindowProblem:
    """Levels with adjacent channels: the kernels read sixteen bytes at a time."""
    keys, values = ([unit_inner(level) for level in levels] for levels in (problem.keys, problem.values))
    return replace(problem, keys=keys, values=values)
