"""The backends of local cross-attention, and the measured crossover between absorbing the projections and not."""

from __future__ import annotations

from vr_kernels.ops import _cuda, _native
from vr_kernels.ops._dispatch import Backend, experimental
from vr_kernels.ops._triton import support
from vr_kernels.ops._windows import WindowRequest


def _projects_less(request: WindowRequest) -> str | None:
    """Projecting keys and values costs 4 C E FLOPs a feature row, the absorbed form 4 C E a query."""
    queries, rows = request.windows.count, request.windows.row_count
    if rows <= queries:  # at equality, windows of one feature, absorbing took 1.2 to 1.5 times as long on 2 cores
        return f"{rows} feature rows for {queries} queries: projecting keys and values once is no more work"
    return None


BACKENDS: tuple[Backend[WindowRequest], ...] = (
    Backend("cpu", refuses=_native.refuses_cpu, passed_over=_projects_less),
    Backend("triton", refuses=support.refuses_windows, passed_over=experimental),
    Backend("triton_fused", refuses=support.refuses_windows, passed_over=experimental),
    Backend("cuda", refuses=_cuda.refuses_windows, passed_over=experimental),
    Backend("cuda_fused", refuses=_cuda.refuses_windows, passed_over=experimental),
    Backend("unabsorbed"),
    Backend("absorbed", passed_over=lambda request: "the stock-PyTorch form of cpu's algebra, kept as a baseline"),
    Backend("reference", passed_over=lambda request: "the definition"),
)
