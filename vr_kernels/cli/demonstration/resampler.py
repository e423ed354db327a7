"""The window resampler that models use today, and its replacement."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vr_kernels import LocalCrossAttention
from vr_kernels.cli.measure.memory import Call

WINDOW = 3


class WindowResampler(nn.Module):
    """Stock PyTorch: concatenate the levels, partition them into windows, nn.MultiheadAttention over the windows."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, query: Tensor, levels: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(levels), -1)  # (B, H, W, C)
        images, height, width, channels = joined.shape
        n_h, n_w = query.shape[1:3]
        s_h, s_w = height // n_h, width // n_w
        windows = joined.view(images, n_h, s_h, n_w, s_w, channels).transpose(2, 3)
        windows = windows.reshape(images * n_h * n_w, s_h * s_w, channels)  # (N, K, C)
        out, _ = self.attention(query.reshape(-1, 1, channels), windows, windows, need_weights=False)
        return out.view(query.shape)  # type: ignore[no-any-return]


def make_resamplers(widths: Sequence[int], heads: int) -> tuple[WindowResampler, LocalCrossAttention]:
    """The stock one with random weights, the same ones each time, and ours made of it."""
    torch.manual_seed(1)
    stock = WindowResampler(sum(widths), heads).eval()
    return stock, LocalCrossAttention.from_multihead_attention(stock.attention, widths).eval()


def pooled_tokens(levels: Sequence[Tensor]) -> Tensor:
    """What the language model would be given without a resampler: the mean of each window, (B, n, n, C)."""
    joined = torch.cat(list(levels), -1).permute(0, 3, 1, 2)
    return F.avg_pool2d(joined, WINDOW).permute(0, 2, 3, 1).contiguous()


@torch.inference_mode()
def resample(module: nn.Module, query: Tensor, levels: Sequence[Tensor]) -> Tensor:
    return module(query, levels)  # type: ignore[no-any-return]


def in_float64(stock: WindowResampler, query: Tensor, levels: Sequence[Tensor]) -> Tensor:
    return resample(copy.deepcopy(stock).double(), query.double(), [level.double() for level in levels])


def memory_calls(widths: list[int], heads: int, images: int, grid: int) -> dict[str, Call]:
    """What memory.peak_memory measures: both resamplers on random features."""

    def call(module: nn.Module) -> Call:
        return Call(*(partial(resample, module, pooled_tokens(levels), levels) for levels in (one, every)))

    one, every = ([torch.randn(n, grid, grid, width) for width in widths] for n in (1, images))
    stock, ours = make_resamplers(widths, heads)
    return {"stock": call(stock), "ours": call(ours)}
