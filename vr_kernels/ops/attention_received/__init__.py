"""``attention_received``: the attention that each token receives from its whole sequence, without a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._importance import KINDS, ImportanceRequest, check_received, reduce, typical_columns
from vr_kernels.ops._registration import cast_for_autocast, stand_in
from vr_kernels.ops._sequences import check_cu_seqlens_values, sequence_of_tokens
from vr_kernels.ops._triton import heads
from vr_kernels.ops.attention_received import op, reference
from vr_kernels.ops.attention_received.density import attention_density

__all__ = ["attention_density", "attention_received"]


def attention_received(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: str | None = "mean",
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The column mean of self-attention: how much attention each token receives from all N of its sequence.

    ``r_j = 1/N * sum_i softmax_j(scale * q_i . k_j)``, VisionZip's score where there is no CLS token. The mean is over
    *all* N rows of the sequence, as the papers' mean over rows of the map is: with ``causal`` too, where only N - j
    rows see column j. So the numbers of a sequence sum to 1 (per head, and after the mean over heads). Scores,
    softmax and sums are float32 (float64 for float64 inputs); no N x N map is made.

    Args:
        query: (B, N, h, d), or packed (T, h, d) with ``cu_seqlens``; float32, bfloat16, float16 or float64.
        key: (B, N, h_kv, d) or (T, h_kv, d), any strides; h_kv divides h.
        causal: row i sees columns up to i only.
        cu_seqlens: (S + 1,) int32 or int64, rising from 0 to T: the bounds of S packed sequences, which do not see
            each other. Values are checked on the CPU (not inside compiled graphs); tokens past the bounds get 0.
        lse: the natural log-sum-exp of each row's scaled scores, (B, N, h) or (T, h), where the caller has it;
            float32 or the query's dtype, any strides (FlashAttention's softmax_lse is (B, h, N): transpose it).
            It is believed, and has a gradient of its own.
        reduce_heads: "mean", "sum", "max"; None keeps the heads. Equal largest weights share a gradient.
        scale: of the scores; None is 1/sqrt(d).
        backend: None chooses; "cpu", "triton", "blocked" (plain PyTorch, a block of rows at a time) or "reference"
            (the definition, which makes the map) by name: it runs or it raises.

    Returns:
        (B, N), packed (T,), in the query's dtype; (B, h, N) or (h, T) where ``reduce_heads`` is None. Differentiable
        once, in reverse mode, in query, key and lse.

    Raises:
        ValueError: shapes, devices, options or bounds that do not fit; a backend that cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> query, key = torch.randn(1, 729, 2, 64), torch.randn(1, 729, 2, 64)
    >>> received = attention_received(query, key)
    >>> received.shape, round(received.sum().item(), 4)
    (torch.Size([1, 729]), 1.0)
    """
    query, key = cast_for_autocast(query, key)
    chosen, scale = _plan(signatures(query, key, cu_seqlens, lse), causal, reduce_heads, scale, backend)
    if chosen == "reference":
        check_cu_seqlens_values("attention_received", cu_seqlens, key.shape[-3])
        columns = reference.attention_received(query, key, cu_seqlens=cu_seqlens, lse=lse, causal=causal, scale=scale)
    else:
        columns = op.run(query, key, cu_seqlens, lse, causal, scale, chosen)
    columns = reduce(columns, reduce_heads, -2)  # (B, [h,] N)
    return (columns / _rows_of_tokens(query, cu_seqlens)).to(query.dtype)


def _rows_of_tokens(query: Tensor, cu_seqlens: Tensor | None) -> int | Tensor:
    """The rows that the mean of each token is over: N, or the length of its packed sequence (T,)."""
    tokens = query.shape[-3]
    if cu_seqlens is None:
        return tokens
    lengths = torch.nn.functional.pad(cu_seqlens.diff(), (0, 1), value=1)  # of a token past the bounds: 1
    return lengths[sequence_of_tokens(cu_seqlens, tokens)]


def _request(query: Any, key: Any, *, cu_seqlens: Any = None, lse: Any = None, **options: Any) -> ImportanceRequest:
    query, key = cast_for_autocast(query, key, cast=stand_in)
    return check_received(*signatures(query, key, cu_seqlens, lse))


@remember
def _plan(
    given: tuple[Any, ...], causal: bool, reduce_heads: str | None, scale: float | None, backend: str | None
) -> tuple[str, float]:
    request = check_received(*given)
    arguments = Arguments("attention_received")
    arguments.flag("causal", causal)
    arguments.choice("reduce_heads", reduce_heads, (*KINDS, None))
    return OPERATOR.select(request, backend), arguments.scale(scale, request.width)


def _few_tokens(request: ImportanceRequest) -> str | None:
    """Why the CPU pass is not chosen: it was measured to lose at 729 tokens and to win at 1,024 and 4,096."""
    # The reason does not print the number: a compiler that traces this would make a graph for each.
    if request.tokens < 1024:
        return "fewer than 1024 tokens: torch's own pass over the blocks was measured to be as fast or faster"
    return None


OPERATOR: Operator[ImportanceRequest] = Operator(
    "attention_received",
    (
        Backend("cpu", refuses=_native.refuses_cpu, passed_over=_few_tokens),
        Backend("triton", refuses=heads.refuses, passed_over=experimental),
        Backend("blocked"),
        Backend("reference", passed_over=lambda request: "the definition, which makes the attention map"),
    ),
    _request,
    typical_columns,
)
register(attention_received, OPERATOR)
