"""Who is compared: ours, and every way in which a user could compute the same today."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import vr_kernels
from vr_kernels.cli.measure.bench import Contender, compiled, results
from vr_kernels.cli.measure.importance.cases import Inputs

Forward = Callable[[Inputs], Tensor]


def maps(x: Inputs) -> Tensor:
    """The eager attention map of every row, as models with output_attentions make it, then its rows' mean."""
    query, key = x.query.transpose(1, 2), x.key.transpose(1, 2)  # (B, h, N, d)
    attention = (query @ key.mT * x.scale).softmax(-1, dtype=torch.float32).to(query.dtype)  # (B, h, N, N)
    return attention[:, :, : x.rows].mean((1, 2))


def rows(x: Inputs) -> Tensor:
    """The rows that are asked for alone."""
    scores = torch.einsum("brhd,bnhd->bhrn", x.query_rows, x.key) * x.scale
    return scores.softmax(-1, dtype=torch.float32).mean((1, 2)).to(x.key.dtype)


def products(x: Inputs) -> Tensor:
    """One row as a product with every key, which no matrix product has to be arranged for."""
    scores = (x.query_rows * x.key).sum(-1) * x.scale  # (B, N, h)
    return scores.softmax(1, dtype=torch.float32).mean(-1).to(x.key.dtype)


def flex(x: Inputs, attention: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """Two passes of FlexAttention: the rows' log-sum-exp, then the columns' with query and key exchanged."""
    query, key = x.query.transpose(1, 2), x.key.transpose(1, 2)
    _, lse = attention(query, key, key, return_lse=True)  # (B, h, N)

    def normalised(score: Tensor, batch: Tensor, head: Tensor, column: Tensor, row: Tensor) -> Tensor:
        return score - lse[batch, head, row]

    _, received = attention(key, query, query, score_mod=normalised, return_lse=True)
    return received.exp().mean(1).div(x.key.shape[1]).to(x.key.dtype)


def importance(x: Inputs, backend: str | None) -> Tensor:
    return vr_kernels.attention_importance(x.query_rows, x.key, backend=backend)


def received(x: Inputs, backend: str | None) -> Tensor:
    return vr_kernels.attention_received(x.query, x.key, backend=backend)


def given_lse() -> Forward:
    """Ours where the attention before has left its log-sum-exp, which is made before anything is timed."""
    made: dict[int, Tensor] = {}

    def forward(x: Inputs) -> Tensor:
        if id(x) not in made:
            query, key = x.query.transpose(1, 2), x.key.transpose(1, 2)
            made[id(x)] = (query.float() @ key.float().mT * x.scale).logsumexp(-1).transpose(1, 2)  # (B, N, h)
        return vr_kernels.attention_received(x.query, x.key, lse=made[id(x)])

    return forward


def attend(x: Inputs) -> tuple[Tensor, ...]:
    """Self-attention itself, whose output is no column mean."""
    query, key = x.query.transpose(1, 2), x.key.transpose(1, 2)
    with torch.no_grad():
        functional.scaled_dot_product_attention(query, key, key)
    return ()


def _compiled_flex() -> Forward:
    from torch.nn.attention.flex_attention import flex_attention  # loads torch's compiler: a second

    return partial(flex, attention=compiled(flex_attention))


ROW_FORMS: dict[str, tuple[str, Callable[[], Forward]]] = {
    "ours": ("what vr_kernels chooses", lambda: partial(importance, backend=None)),
    "rows": ("einsum, softmax and mean of the rows alone", lambda: rows),
    "compiled": ("the same under torch.compile", lambda: compiled(rows)),
    "products": ("product and sum in place of the einsum", lambda: products),
    "maps": ("eager attention maps of all rows", lambda: maps),
    "triton": ("Triton kernels", lambda: partial(importance, backend="triton")),
}
COLUMN_FORMS: dict[str, tuple[str, Callable[[], Forward]]] = {
    "ours": ("what vr_kernels chooses", lambda: partial(received, backend=None)),
    "maps": ("eager attention maps", lambda: maps),
    "compiled": ("the same under torch.compile", lambda: compiled(maps)),
    "blocked": ("plain PyTorch, a block of rows at a time", lambda: partial(received, backend="blocked")),
    "triton": ("Triton kernels", lambda: partial(received, backend="triton")),
    "given_lse": ("ours, given the log-sum-exp of the rows", given_lse),
    "flex": ("FlexAttention twice, the second time with query and key exchanged", _compiled_flex),
}


def make_contender(forms: dict[str, tuple[str, Callable[[], Forward]]], name: str) -> Contender[Inputs]:
    """A contender by name; what cannot run here shows when it is first called."""
    if name == "sdpa":
        return Contender(name, "SDPA's forward, to compare with: it makes no column means", attend, rival=False)
    what, form = forms[name]
    return Contender(name, what, partial(results, form()), rival=name != "given_lse")
