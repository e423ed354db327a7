"""patch_linear on the CPU: patches moved by csrc/cpu, products by oneDNN or MKL through torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops._native import module
from vr_kernels.ops.token_fusion import blocked
from vr_kernels.ops.token_fusion.patches import Patches

# A block has a tenth of the patches, so that its copy is a tenth of the concatenation; never so few that reading the
# weight again for each block shows, and never so many that the buffer kept from call to call grows with the batch.
PART, MOST_ROWS = 10, 2304
LEAST_ROWS = 576


class NativePatches:
    """``BlockedEngine`` on the CPU."""

    def forward(
        self, features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, kernel_size: int, activation: str | None
    ) -> Tensor:
        return blocked.forward(self, features, weight, bias, kernel_size, activation)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        out: Tensor
        if onednn_takes(rows.dtype):
            # Bias and GELU inside the GEMM, on its float32 sums.
            name, algorithm = ("none", "") if activation is None else (activation, "none")
            out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, name, [], algorithm)
        else:
            out = F.linear(rows, weight, bias)
            if activation == "gelu":
                torch.ops.aten.gelu_(out)
        return out

    def gather(self, levels: Sequence[Tensor], patches: Patches, first: int, rows: Tensor) -> None:
        _move(module().gather_patches, levels, patches, first, rows)

    def scatter(self, rows: Tensor, levels: Sequence[Tensor], patches: Patches) -> None:
        _move(module().scatter_patches, levels, patches, 0, rows)

    def block_rows(self, patches: int) -> int:
        return max(min(patches // PART, MOST_ROWS), LEAST_ROWS)


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN has a GEMM of this dtype here, with an epilogue.

    Not in float32: over the 8,192 channels of LLaVA-STF's first layer its sums err 2.2 times as much as MKL's.
    """
    if not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return False
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _move(move: Callable[..., None], levels: Sequence[Tensor], patches: Patches, first: int, rows: Tensor) -> None:
    if rows.shape[0] == 0:
        return
    move(
        levels=[(level.data_ptr(), *level.stride(), level.shape[-1]) for level in levels],
        patches=(patches.down, patches.across),
        kernel=patches.kernel,
        first=first,
        count=rows.shape[0],
        rows=rows.data_ptr(),
        item_bytes=rows.element_size(),
        threads=torch.get_num_threads(),
    )
