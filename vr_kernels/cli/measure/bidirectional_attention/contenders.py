"""Who is compared: ours, and every way in which a user could compute the same today."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Contender, compiled, results
from vr_kernels.cli.measure.bidirectional_attention.cases import Inputs

Forward = Callable[[Inputs], Tensor]


def normalised(x: Inputs) -> Tensor:
    """The vision tokens and their guide, concatenated, RMS-normalised: (B, N + 1, D)."""
    tokens = x.hidden_states.flatten(0, 1)[x.token_rows]
    guide = x.hidden_states.masked_fill(~x.text_mask[..., None], -torch.inf).amax(1, keepdim=True)
    return F.rms_norm(torch.cat([tokens, guide], 1), tokens.shape[-1:], x.layer.norm_weight, x.layer.norm_eps)


def attend(x: Inputs, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SDPA of (B, N, h d) and (B, N + 1, h d), the output projection, and the sum at the tokens' rows."""
    heads = (x.layer.num_heads, x.layer.head_dim)
    q, k, v = (rows.unflatten(-1, heads).transpose(1, 2) for rows in (query, key, value))
    update = x.layer.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
    stream = x.hidden_states.flatten(0, 1)
    return stream.index_add(0, x.token_rows.flatten(), update.flatten(0, 1)).view(x.hidden_states.shape)


def naive(x: Inputs) -> Tensor:
    """Each projection by itself, the query's of the tokens alone."""
    rows = normalised(x)
    w_q, w_k, w_v = x.layer.qkv_proj.weight.chunk(3)
    return attend(x, F.linear(rows[:, :-1], w_q), F.linear(rows, w_k), F.linear(rows, w_v))


def packed(x: Inputs) -> Tensor:
    """One projection of tokens and guide."""
    query, key, value = x.layer.qkv_proj(normalised(x)).chunk(3, -1)
    return attend(x, query[:, :-1], key, value)


def ours(x: Inputs) -> Tensor:
    out = x.layer(x.hidden_states, x.token_rows, text_mask=x.text_mask)
    assert isinstance(out, Tensor)
    return out


def chosen_backends(x: Inputs) -> str:
    """Of the gather; the scatter's is the same, and attention is SDPA."""
    gather = vr_kernels.explain(
        vr_kernels.gather_tokens, x.hidden_states, x.token_rows, norm_weight=x.layer.norm_weight, text_mask=x.text_mask
    )
    return f"{gather.chosen} around sdpa"


BASELINES = ("naive", "packed", "compiled")
FORMS: dict[str, tuple[str, Forward]] = {
    "ours": ("BidirectionalTokenAttention", ours),
    "naive": ("concat, q, k and v projected, SDPA, index_add", naive),
    "packed": ("concat, one packed projection, SDPA, index_add", packed),
}


def make_contender(name: str) -> Contender[Inputs]:
    """A contender by name; what cannot run here shows when it is first called."""
    if name == "compiled":
        return Contender(name, "packed under torch.compile", partial(results, compiled(packed)))
    what, forward = FORMS[name]
    return Contender(name, what, partial(results, forward))
