"""patch_linear in blocks: a few rows of the patch matrix at a time, or a few of its columns, in one reused buffer.

Forward, a block is some patches with all their columns; one GEMM finishes its outputs. Backward, a block is some
columns of all patches: ``dW[:, block] = G^T X[:, block]`` and ``dX[:, block] = G W[:, block]`` are whole sums, each one
GEMM, so that nothing is accumulated, and rounded, between blocks. Where the features lie as a GEMM reads them (k = 1
and one level, or levels side by side in one buffer) there is no gather at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vr_kernels.ops._registration import as_output
from vr_kernels.ops._workspace import workspace
from vr_kernels.ops.token_fusion.patches import Patches, as_matrix, side_by_side


class Engine(Protocol):
    """What a backend does with patches."""

    def forward(
        self,
        features: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        kernel_size: int,
        activation: str | None,
    ) -> Tensor:
        """(B, H/k, W/k, O)."""

    def gather(self, levels: Sequence[Tensor], patches: Patches, first: int, rows: Tensor) -> None:
        """Patches ``first`` and on, as many as ``rows`` (n, K) has room for."""

    def scatter(self, rows: Tensor, levels: Sequence[Tensor], patches: Patches) -> None:
        """``rows`` of all patches back into the levels."""


class BlockedEngine(Engine, Protocol):
    """One that goes forward in blocks."""

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        """rows (n, K), weight (O, K), bias (O,) of one dtype -> (n, O)."""

    def block_rows(self, patches: int) -> int:
        """How many patches a block has."""


class Columns(NamedTuple):
    """Channels of one level, and where their columns are in the matrix."""

    level: int
    channels: slice
    columns: slice


def forward(
    engine: BlockedEngine,
    features: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: int,
    activation: str | None,
) -> Tensor:
    """(B, H/k, W/k, O)."""
    patches = Patches.of(features[0].shape[:-1], kernel_size)
    # oneDNN reads a bias as if its elements lay beside each other.
    weight, bias = weight.contiguous(), None if bias is None else bias.to(weight.dtype).contiguous()
    n, width = patches.count, weight.shape[0]
    if n == 0:
        return weight.new_empty(*patches.shape, width)
    joined = side_by_side(features)
    rows = None if joined is None else as_matrix(joined, patches)
    if rows is not None:
        return as_output(engine.linear(rows, weight, bias, activation), *patches.shape, width)
    blocks = -(-n // engine.block_rows(n))
    step = -(-n // blocks)
    levels = features if joined is None else [joined]
    buffer = workspace("patch rows", (step, weight.shape[1]), weight.dtype, weight.device)
    out = None if blocks == 1 else weight.new_empty(n, width)
    for first in range(0, n, step):
        block = buffer[: min(step, n - first)]
        engine.gather(levels, patches, first, block)
        result = engine.linear(block, weight, bias, activation)
        if out is None:
            out = result
        else:
            out[first : first + step] = result
    assert out is not None
    return as_output(out, *patches.shape, width)


def backward(
    engine: Engine,
    grad_out: Tensor,
    features: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: int,
    activation: str | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of weight and bias, then of each level; ``needs`` is of weight, bias, features. Empty: not needed."""
    needs_weight, needs_bias, needs_features = needs
    patches = Patches.of(features[0].shape[:-1], kernel_size)
    if activation == "gelu":
        before = engine.forward(features, weight, bias, kernel_size, None)
        grad_out = torch.ops.aten.gelu_backward(grad_out, before)
    grad = grad_out.reshape(patches.count, weight.shape[0]).contiguous()  # (n, O)
    nothing = weight.new_empty(0)
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else nothing
    d_features = [level.new_empty(level.shape) if needs_features else nothing for level in features]
    for level, channels, columns in _column_blocks(features, patches, weight.shape[0]):
        shape = (patches.count, columns.stop - columns.start)
        if needs_weight:
            part = features[level][..., channels]
            rows = as_matrix(part, patches)
            if rows is None:
                rows = workspace("patch rows", shape, weight.dtype, weight.device)
                engine.gather([part], patches, 0, rows)
            torch.mm(grad.T, rows, out=d_weight[:, columns])
        if needs_features:
            part = d_features[level][..., channels]
            target = as_matrix(part, patches)
            rows = workspace("patch rows", shape, weight.dtype, weight.device) if target is None else target
            torch.mm(grad, weight[:, columns], out=rows)
            if target is None:
                engine.scatter(rows, [part], patches)
    d_bias = nothing
    if needs_bias and bias is not None:
        d_bias = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias.dtype)
    return [d_weight, d_bias, *d_features]


# A column block is an eighth of the matrix, and no narrower than a GEMM takes at full speed; a matrix of an eighth of
# the weight's size is not worth cutting.
PARTS, LEAST_COLUMNS = 8, 1024


def _column_blocks(features: Sequence[Tensor], patches: Patches, out_channels: int) -> Iterator[Columns]:
    widths = [level.shape[-1] for level in features]
    parts = PARTS if patches.count * PARTS > out_channels else 1
    step = max(-(-sum(widths) // parts), LEAST_COLUMNS // patches.area, 1)  # channels
    first = 0
    for level, width in enumerate(widths):
        for start in range(0, width, step):
            stop = min(start + step, width)
            columns = slice((first + start) * patches.area, (first + stop) * patches.area)
            yield Columns(level, slice(start, stop), columns)
        first += width
