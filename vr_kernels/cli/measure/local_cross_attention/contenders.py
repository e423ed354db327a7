"""Who is compared: ours, and every way in which a user could compute the same today."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

import vr_kernels
from vr_kernels.cli.measure.bench import Contender, compiled, results, under_sdpa
from vr_kernels.cli.measure.local_cross_attention.cases import Inputs, WindowCase

Forward = Callable[[Inputs], Tensor]


def windows_of(x: Inputs) -> Tensor:
    """The levels concatenated and partitioned by copy, as models do it: (N, K, C)."""
    joined = torch.cat(x.features, -1)
    images, height, width, channels = joined.shape
    n_h, n_w = x.query.shape[1:3]
    s_h, s_w = height // n_h, width // n_w
    grid = joined.view(images, n_h, s_h, n_w, s_w, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(images * n_h * n_w, s_h * s_w, channels)


def naive(x: Inputs) -> Tensor:
    """Project every feature of every window, then scaled_dot_product_attention with one query a window."""
    windows = windows_of(x)
    key = F.linear(windows, x.key_weight).unflatten(-1, (x.heads, -1)).transpose(1, 2)  # (N, h, K, d)
    value = F.linear(windows, x.value_weight).unflatten(-1, (x.heads, -1)).transpose(1, 2)
    query = x.query.flatten(0, 2).unflatten(-1, (x.heads, 1, -1))  # (N, h, 1, d)
    return F.scaled_dot_product_attention(query, key, value).reshape(x.query.shape)


def replayed(forward: Forward) -> Forward:
    """``forward`` captured in a CUDA graph by the first call with some inputs, and replayed by every later one."""
    captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def replay(x: Inputs) -> Tensor:
        if id(x) not in captured:
            forward(x)  # loads the kernels
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = forward(x)
            captured[id(x)] = graph, out
        graph, out = captured[id(x)]
        graph.replay()
        return out

    return replay


def operator(backend: str | None) -> Forward:
    def forward(x: Inputs) -> Tensor:
        out = vr_kernels.local_cross_attention(
            x.query, x.features, x.key_weight, x.value_weight, num_heads=x.heads, backend=backend
        )
        assert isinstance(out, Tensor)
        return out

    return forward


def chosen_backend(x: Inputs) -> str:
    explained = vr_kernels.explain(
        vr_kernels.local_cross_attention, x.query, x.features, x.key_weight, x.value_weight, num_heads=x.heads
    )
    return explained.chosen


def sdpa_backend(case: WindowCase) -> str:
    """Which of SDPA's implementations the naive form gets."""

    def heads(rows: int) -> Tensor:
        return torch.empty(2, case.heads, rows, case.channels // case.heads, dtype=case.torch_dtype, device=case.device)

    query, key = heads(1).requires_grad_(case.backward), heads(case.keys)
    choice = torch._fused_sdp_choice(query, key, key)
    return SDPBackend(choice).name.lower()


KERNELS = ("triton", "triton_fused", "cuda", "cuda_fused")
BASELINES = ("naive", "compiled", "absorbed", "unabsorbed", *KERNELS, "flash", "cudnn", "flex", "graph")
OURS = {
    "ours": "what vr_kernels chooses",
    "absorbed": "the absorbed formula in stock PyTorch",
    "unabsorbed": "K and V projected once a feature, then local attention",
    "triton": "Triton kernels around torch's GEMMs",
    "triton_fused": "Triton kernels that multiply by the projections themselves",
    "cuda": "CUDA C++ kernels around torch's GEMMs",
    "cuda_fused": "CUDA C++ kernels that multiply by the projections themselves",
}
CUDA_ONLY = {
    "triton": "Triton kernels run on CUDA",
    "triton_fused": "Triton kernels run on CUDA",
    "cuda": "they run on CUDA",
    "cuda_fused": "they run on CUDA",
    "flash": "SDPA's flash attention runs on CUDA",
    "cudnn": "cuDNN runs on CUDA",
    "flex": "compared on CUDA alone",
    "graph": "there are graphs of CUDA alone",
}


def make_contender(name: str, case: WindowCase) -> Contender[Inputs]:
    """A contender by name; what cannot run here shows when it is first called."""
    what, forward = _form(name, case)
    return Contender(name, what, partial(results, forward), rival=name != "graph")


def _form(name: str, case: WindowCase) -> tuple[str, Forward]:
    if name == "naive":
        return f"concat, partition, K and V projected, SDPA ({sdpa_backend(case)})", naive
    if name == "compiled":
        return "naive under torch.compile", compiled(naive)
    if name in ("flash", "cudnn"):
        backend = SDPBackend.FLASH_ATTENTION if name == "flash" else SDPBackend.CUDNN_ATTENTION
        return f"naive with SDPA's {name} backend", under_sdpa(backend, naive)
    if name == "graph":
        return "ours replayed in a CUDA graph, whose buffers are there before", replayed(operator(None))
    if name == "flex":
        from vr_kernels.cli.measure.local_cross_attention.flex import compiled_flex  # loads torch's compiler: a second

        return "K and V projected, FlexAttention", compiled_flex()
    return OURS[name], operator(None if name == "ours" else name)
