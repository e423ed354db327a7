"""A resampler of one's own on ``nn.MultiheadAttention`` over windows, replaced by ``LocalCrossAttention``."""

import torch
from torch import Tensor, nn

from vr_kernels import LocalCrossAttention


class WindowResampler(nn.Module):
    """Each of n x n tokens attends to its window of two levels: concatenated, cut into windows, projected."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor, levels: list[Tensor]) -> Tensor:
        batch, n, _, width = tokens.shape
        features = torch.cat(levels, -1)  # (B, H, W, C)
        side = features.shape[1] // n
        windows = features.unflatten(1, (n, side)).unflatten(3, (n, side)).transpose(2, 3)  # (B, n, n, s, s, C)
        windows = windows.reshape(batch * n * n, side * side, width)
        out, _ = self.attention(tokens.reshape(-1, 1, width), windows, windows)
        return out.view_as(tokens)  # type: ignore[no-any-return]


def main() -> None:
    torch.manual_seed(0)
    stock = WindowResampler(width=96, heads=4).eval()
    levels = [torch.randn(2, 12, 12, 48, requires_grad=True) for _ in range(2)]
    tokens = torch.randn(2, 4, 4, 96, requires_grad=True)

    ours = LocalCrossAttention.from_multihead_attention(stock.attention, feature_dims=(48, 48)).eval()
    expected, got = stock(tokens, levels), ours(tokens, levels)  # no concatenation, no windows, the same weights
    print(f"largest difference of outputs:   {(expected - got).detach().abs().max():.1e}")
    gradients = [torch.autograd.grad(out.square().sum(), [tokens, *levels]) for out in (expected, got)]
    worst = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    print(f"largest difference of gradients: {worst:.1e}")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
