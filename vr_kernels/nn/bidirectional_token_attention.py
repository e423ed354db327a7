"""``BidirectionalTokenAttention``: the second layer of a Vision Remember block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.ops import bidirectional_attention, gather_tokens, scatter_add_tokens
from vr_kernels.ops._tokens import read_rows


class BidirectionalTokenAttention(nn.Module):
    """Vision tokens attend to all vision tokens of their image and to the prompt (Vision Remember v2, §3.3).

    ``x = x + W_o attention(W_q n(x), W_k [n(x), n(guide)], W_v [n(x), n(guide)])`` at the vision tokens x of one image,
    n the norm and guide the maximum of the sample's text tokens; every other token stays as it is. No position
    encoding, no feed-forward layer. The projections are called as modules, whatever they have been replaced by.

    Args:
        hidden_size: D, the width of the stream.
        num_heads: h. head_dim: d; None is hidden_size / h.
        norm: "rms", "layer" or None, before the projections.
        norm_eps: the norm's; usually the language model's.
        bias: biases on the projections.
        guide: how the prompt's text becomes one more key, the text-guided token: "max" of each channel, as the paper,
            "mean", or None, no such key.
        zero_init: start ``out_proj`` at zero: the layer starts as the identity, bit for bit.

    Raises:
        ValueError: sizes below one; no head_dim and heads that do not divide hidden_size; an unknown norm.

    >>> layer = BidirectionalTokenAttention(64, num_heads=4)
    >>> hidden_states = torch.randn(1, 10, 64)
    >>> token_rows = torch.tensor([[2, 3, 4], [6, 7, -1]])  # two images, five vision tokens
    >>> text_mask = torch.arange(10)[None] >= 8
    >>> out = layer(hidden_states, token_rows, text_mask=text_mask, image_sample=torch.tensor([0, 0]))
    >>> torch.equal(out, hidden_states)  # zero_init
    True
    """

    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        norm: str | None = "rms",
        norm_eps: float = 1e-6,
        bias: bool = False,
        guide: str | None = "max",
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_heads", num_heads)):
            if size < 1:
                raise ValueError(f"BidirectionalTokenAttention: {name} is {size}; it must be at least 1")
        if head_dim is None and hidden_size % num_heads != 0:
            raise ValueError(
                f"BidirectionalTokenAttention: num_heads is {num_heads}, hidden_size is {hidden_size}; "
                "give head_dim, or a num_heads that divides hidden_size"
            )
        head_dim = hidden_size // num_heads if head_dim is None else head_dim
        if head_dim < 1:
            raise ValueError(f"BidirectionalTokenAttention: head_dim is {head_dim}; it must be at least 1")
        if guide not in ("max", "mean", None):
            raise ValueError(f'BidirectionalTokenAttention: guide is {guide!r}; it must be "max", "mean" or None')
        if norm not in ("rms", "layer", None):
            raise ValueError(f'BidirectionalTokenAttention: norm is {norm!r}; it must be "rms", "layer" or None')
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.norm, self.norm_eps = norm, norm_eps
        self.guide, self.zero_init = guide, zero_init

        inner = num_heads * head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, hidden_size, bias=bias, device=device, dtype=dtype)

        def parameter(wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if wanted else None

        self.register_parameter("norm_weight", parameter(norm is not None))
        self.register_parameter("norm_bias", parameter(norm == "layer"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections, each of q, k and v by itself, and zero biases; with zero_init W_o is zero."""
        for weight in self.qkv_proj.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
        if self.zero_init:
            nn.init.zeros_(self.out_proj.weight)
        else:
            nn.init.xavier_uniform_(self.out_proj.weight)
        for bias in (self.qkv_proj.bias, self.out_proj.bias, self.norm_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)

    def forward(
        self,
        hidden_states: Tensor,
        token_rows: Tensor,
        *,
        text_mask: Tensor | None = None,
        image_sample: Tensor | None = None,
    ) -> Tensor:
        """The stream with its vision tokens updated; a new tensor.

        Args:
            hidden_states: (B, T, D). token_rows: (I, N), row b*T + t of each vision token of each image (all its
                tiles), -1 = padding; see ``vr_kernels.gather_tokens``.
            text_mask: (B, T) bool, True at the prompt's text; None, or no text in a sample: no guide.
            image_sample: (I,), the sample each image belongs to; None: I is B, in order.

        Returns:
            (B, T, D) in the dtype of hidden_states.
        """
        text_mask = None if self.guide is None else text_mask
        rows = gather_tokens(
            hidden_states,
            token_rows,
            norm_weight=self.norm_weight if self.norm == "rms" else None,
            norm_eps=self.norm_eps,
            text_mask=text_mask if self.guide == "max" else None,
            image_sample=image_sample,
        )  # (I, N or N+1, D): the guide comes last
        if self.guide == "mean" and text_mask is not None:
            rows = torch.cat([rows, self._mean_guide(hidden_states, text_mask, image_sample)], 1)
        if self.norm == "layer":
            rows = F.layer_norm(rows, rows.shape[-1:], self.norm_weight, self.norm_bias, self.norm_eps)
        present = (token_rows >= 0) & (token_rows < hidden_states[..., 0].numel())  # (I, N)
        if text_mask is not None:
            has_text = text_mask.any(1, keepdim=True)
            has_text = has_text if image_sample is None else read_rows(has_text, image_sample)  # (I, 1)
            present = torch.cat([present, has_text], 1)
        projected = self.qkv_proj(rows).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = projected.unbind(2)
        attended = bidirectional_attention(query[:, : token_rows.shape[1]], key, value, key_mask=present)
        return scatter_add_tokens(hidden_states, token_rows, self.out_proj(attended.flatten(-2)))

    def _mean_guide(self, hidden_states: Tensor, text_mask: Tensor, image_sample: Tensor | None) -> Tensor:
        """(I, 1, D), RMS-normalised where that is the norm; zeros in a sample without text."""
        accumulate = torch.promote_types(hidden_states.dtype, torch.float32)
        text = hidden_states.masked_fill(~text_mask[..., None], 0).sum(1, dtype=accumulate)
        guide = (text / text_mask.sum(1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)  # (B, D)
        if self.norm == "rms":
            guide = F.rms_norm(guide, guide.shape[-1:], self.norm_weight, self.norm_eps)
        guide = guide if image_sample is None else read_rows(guide, image_sample)  # (I, D)
        return guide[:, None]

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, num_heads={self.num_heads}, head_dim={self.head_dim}, norm={self.norm!r}, "
            f"norm_eps={self.norm_eps}, guide={self.guide!r}, zero_init={self.zero_init}"
        )
