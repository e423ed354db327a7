"""``BidirectionalTokenAttention``: the second layer of a Vision Remember block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.nn._linear import check_input
from vr_kernels.nn._rotary import rotate
from vr_kernels.nn._sizes import check_positive, check_positive_number, head_width
from vr_kernels.ops import bidirectional_attention, gather_tokens, scatter_add_tokens
from vr_kernels.ops._arguments import Arguments, is_readable, signatures
from vr_kernels.ops._tokens import check_guide, check_token_rows, read_rows, stream_of, token_rows_of


class BidirectionalTokenAttention(nn.Module):
    """Vision tokens attend to all vision tokens of their image and to the prompt (Vision Remember v2, §3.3).

    ``x = x + W_o attention(W_q n(x), W_k [n(x), n(guide)], W_v [n(x), n(guide)])`` at the vision tokens x of one image,
    n the norm and guide the maximum of the sample's text tokens; every other token stays as it is. No feed-forward
    layer. The projections are called as modules, whatever they have been replaced by.

    The paper's layer has no position encoding. With rope_theta queries and keys are turned to their places in the
    sequence, as the language model turns its own. The guide stands at no place: it is pooled from all of the text, so
    it is not turned, which is position 0, before everything that it is read by.

    Args:
        hidden_size: D, the width of the stream.
        num_heads: h. head_dim: d; None is hidden_size / h.
        norm: "rms", "layer" or None, before the projections.
        norm_eps: the norm's; usually the language model's.
        bias: biases on the projections.
        guide: how the prompt's text becomes one more key, the text-guided token: "max" of each channel, as the paper,
            "mean", or None, no such key.
        rope_theta: base of the rotary position embedding, rotate-half as in Llama and Qwen2; None: no positions.
        zero_init: start ``out_proj`` at zero: the layer starts as the identity, bit for bit.

    Raises:
        ValueError: sizes below one; no head_dim and heads that do not divide hidden_size; an unknown norm or guide; a
            norm_eps or rope_theta that is no positive number; a rope_theta beside an odd head_dim.
        TypeError: a size that is no int.

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
        rope_theta: float | None = None,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("BidirectionalTokenAttention", hidden_size=hidden_size, num_heads=num_heads)
        head_dim = head_width("BidirectionalTokenAttention", "hidden_size", hidden_size, num_heads, head_dim)
        if guide not in ("max", "mean", None):
            raise ValueError(f'BidirectionalTokenAttention: guide is {guide!r}; it must be "max", "mean" or None')
        if norm not in ("rms", "layer", None):
            raise ValueError(f'BidirectionalTokenAttention: norm is {norm!r}; it must be "rms", "layer" or None')
        check_positive_number("BidirectionalTokenAttention", "norm_eps", norm_eps)
        check_positive_number("BidirectionalTokenAttention", "rope_theta", rope_theta, optional=True)
        if rope_theta is not None and head_dim % 2 != 0:
            raise ValueError(
                f"BidirectionalTokenAttention: head_dim is {head_dim}; it must be even where rope_theta is given, "
                "which turns pairs of channels"
            )
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.norm, self.norm_eps = norm, norm_eps
        self.guide, self.rope_theta, self.zero_init = guide, rope_theta, zero_init

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
        key_rows: Tensor | None = None,
        text_mask: Tensor | None = None,
        image_sample: Tensor | None = None,
        position_ids: Tensor | None = None,
        complete: bool = False,
    ) -> Tensor:
        """The stream with its vision tokens updated; a new tensor.

        Args:
            hidden_states: (B, T, D). token_rows: (I, N), row b*T + t of each vision token of each image (all its
                tiles), -1 = padding; see ``vr_kernels.gather_tokens``.
            key_rows: (I, M), rows that each image's tokens attend to as well, and that stay as they are: its newline
                tokens. -1 = padding; no row of token_rows again. None: no such key.
            text_mask: (B, T) bool, True at the prompt's text; None, or no text in a sample: no guide.
            image_sample: (I,), the sample each image belongs to; None: I is B, in order.
            position_ids: (B, T), or (1, T) for every sample, int32 or int64: the positions that rope_theta turns to;
                None: the slot's own number t, which differs from a left-padded model's position by the padding, and so
                in nothing but the distance to the guide.
            complete: whether the caller knows that no row is padding and no sample without text: then no mask of keys
                is made. On the CPU it is checked.

        Returns:
            (B, T, D) in the dtype of hidden_states.

        Raises:
            ValueError, TypeError: as ``vr_kernels.gather_tokens`` does; key_rows of another number of images;
                position_ids of another shape, or without rope_theta; on the CPU, a complete that is not true.
        """
        check_input("BidirectionalTokenAttention", "hidden_states", hidden_states, self.qkv_proj)
        text_mask = None if self.guide is None else text_mask
        self._check(hidden_states, token_rows, key_rows, text_mask, image_sample, position_ids)
        read = token_rows if key_rows is None else torch.cat([token_rows, key_rows], 1)  # (I, N+M)
        rows = gather_tokens(
            hidden_states,
            read,
            norm_weight=self.norm_weight if self.norm == "rms" else None,
            norm_eps=self.norm_eps,
            text_mask=text_mask if self.guide == "max" else None,
            image_sample=image_sample,
        )  # (I, N+M or N+M+1, D): the guide comes last
        if self.guide == "mean" and text_mask is not None:
            rows = torch.cat([rows, self._mean_guide(hidden_states, text_mask, image_sample)], 1)
        if self.norm == "layer":
            rows = F.layer_norm(rows, rows.shape[-1:], self.norm_weight, self.norm_bias, self.norm_eps)
        present = self._present(hidden_states, read, text_mask, image_sample, complete)  # (I, N+M or N+M+1)
        projected = self.qkv_proj(rows).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = projected.unbind(2)
        if self.rope_theta is not None:
            position = self._positions(hidden_states, read, position_ids)  # (I, N+M)
            position = F.pad(position, (0, rows.shape[1] - read.shape[1]))  # and 0, the guide's
            query, key = rotate(projected[:, :, :2], position, self.rope_theta).unbind(2)
        attended = bidirectional_attention(query[:, : token_rows.shape[1]], key, value, key_mask=present)
        return scatter_add_tokens(hidden_states, token_rows, self.out_proj(attended.flatten(-2)))

    def _check(
        self,
        hidden_states: Tensor,
        token_rows: Tensor,
        key_rows: Tensor | None,
        text_mask: Tensor | None,
        image_sample: Tensor | None,
        position_ids: Tensor | None,
    ) -> None:
        """By the words that the caller knows: the operators get rows of both kinds in one table, and no mean guide."""
        arguments = Arguments("BidirectionalTokenAttention", query="hidden_states")
        given = signatures(hidden_states, token_rows, key_rows, text_mask, image_sample, position_ids)
        stream = stream_of(arguments, given[0])
        batch, length, _ = stream.shape
        images, _ = token_rows_of(arguments, given[1], stream)
        check_guide(arguments, given[3], given[4], stream, images)
        if key_rows is not None:
            shape = arguments.index("key_rows", given[2], stream).shape
            if len(shape) != 2 or shape[0] != images:
                raise arguments.error(f"key_rows has shape {shape}; it must be (I, M) with I = {images}")
            together = torch.cat([token_rows, key_rows], 1)
            named = {"token_rows": token_rows, "key_rows": key_rows, "key_rows beside token_rows": together}
            for name, rows in named.items():
                check_token_rows(arguments.operator, rows, batch * length, name)
        if position_ids is not None:
            if self.rope_theta is None:
                raise arguments.error("position_ids is given and rope_theta is None; nothing reads them")
            shape = arguments.index("position_ids", given[5], stream).shape
            if len(shape) != 2 or shape[0] not in (1, batch) or shape[1] != length:
                raise arguments.error(
                    f"position_ids has shape {shape}; it must be (B, T) = {(batch, length)} or {(1, length)}"
                )

    def _present(
        self,
        hidden_states: Tensor,
        read: Tensor,
        text_mask: Tensor | None,
        image_sample: Tensor | None,
        complete: bool,
    ) -> Tensor | None:
        """Which keys there are, (I, N+M) and the guide; None where all are known to be."""
        if complete and not is_readable(read):
            return None
        present = (read >= 0) & (read < hidden_states[..., 0].numel())  # (I, N+M)
        if text_mask is not None:
            has_text = text_mask.any(1, keepdim=True)
            has_text = has_text if image_sample is None else read_rows(has_text, image_sample)  # (I, 1)
            present = torch.cat([present, has_text], 1)
        if complete and not bool(present.all()):
            raise ValueError(
                "BidirectionalTokenAttention: complete is True, and a row is padding or a sample without text; it must "
                "be False"
            )
        return None if complete else present

    def _positions(self, hidden_states: Tensor, rows: Tensor, position_ids: Tensor | None) -> Tensor:
        """Of rows b*T + t (I, N); any number for padding."""
        batch, length = hidden_states.shape[:2]
        if position_ids is None or batch * length == 0:
            return rows % max(length, 1)
        return position_ids.expand(batch, length).flatten()[rows.clamp(0, batch * length - 1)]

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
            f"norm_eps={self.norm_eps}, guide={self.guide!r}, rope_theta={self.rope_theta}, zero_init={self.zero_init}"
        )
