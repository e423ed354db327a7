"""Attention importance and attention received at the encoders' shapes, against every way to compute the same today."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import TRITON_ALONE, Bench, Contender, results
from vr_kernels.cli.measure.importance.cases import COLUMNS, ROWS, Inputs, TokenCase, make_inputs
from vr_kernels.cli.measure.importance.contenders import COLUMN_FORMS, ROW_FORMS, make_contender, maps, rows


class _TokenBench(Bench[TokenCase, Inputs]):
    case_type = TokenCase
    cuda_only = TRITON_ALONE

    def quantities(self, case: TokenCase) -> Sequence[str]:
        return ("output", "query gradient", "key gradient") if case.backward else ("output",)

    def inputs(self, case: TokenCase) -> Inputs:
        return make_inputs(case)


class AttentionImportanceBench(_TokenBench):
    name = "attention_importance"
    title = "attention importance"
    shapes = ROWS
    default = ("cls", "cls40", "raters")
    baselines = ("rows", "compiled", "products", "maps", "triton")
    yardstick = "rows"

    def exact(self, case: TokenCase, x: Inputs) -> tuple[Tensor, ...]:
        return tuple(exact.detach() for exact in results(rows, _in_float64(x)))

    def contender(self, name: str, case: TokenCase) -> Contender[Inputs]:
        return make_contender(ROW_FORMS, name)

    def chosen(self, case: TokenCase, x: Inputs) -> str:
        return vr_kernels.explain(vr_kernels.attention_importance, x.query_rows, x.key).chosen

    def operations(self, case: TokenCase) -> float:
        """A product of each row with each key, and two more for the gradients."""
        assert case.rows is not None
        return case.images * case.heads * case.rows * case.tokens * case.width * (6.0 if case.backward else 2.0)

    def bytes_moved(self, case: TokenCase) -> float:
        """The keys once, the output once; with a backward pass the keys again, and the key gradient."""
        keys = case.images * case.tokens * case.heads * case.width * (3 if case.backward else 1)
        return float((keys + case.images * case.tokens) * case.torch_dtype.itemsize)

    def lacking(self, name: str, case: TokenCase) -> str | None:
        if name == "products" and case.rows != 1:
            return "it takes one row"
        return super().lacking(name, case)


class AttentionReceivedBench(_TokenBench):
    name = "attention_received"
    title = "attention received"
    shapes = COLUMNS
    default = ("siglip", "grid32", "grid64")
    baselines = ("maps", "compiled", "blocked", "flex", "triton", "given_lse", "sdpa")
    yardstick = "maps"

    def exact(self, case: TokenCase, x: Inputs) -> tuple[Tensor, ...]:
        """One image's head after the other: only its map is held."""
        images = [_sum_over_heads(x, image) for image in range(case.images)]
        return tuple(torch.cat(column).detach() for column in zip(*images, strict=True))

    def contender(self, name: str, case: TokenCase) -> Contender[Inputs]:
        return make_contender(COLUMN_FORMS, name)

    def chosen(self, case: TokenCase, x: Inputs) -> str:
        return vr_kernels.explain(vr_kernels.attention_received, x.query, x.key).chosen

    def operations(self, case: TokenCase) -> float:
        """The scores; with a backward pass the scores again and a product for each gradient."""
        return case.images * case.heads * case.tokens**2 * case.width * (8.0 if case.backward else 2.0)

    def bytes_moved(self, case: TokenCase) -> float:
        """Queries, keys and output once each; with a backward pass queries and keys again, and their gradients."""
        tokens = case.images * case.tokens
        return tokens * (2.0 * case.heads * case.width * (3 if case.backward else 1) + 1) * case.torch_dtype.itemsize

    def lacking(self, name: str, case: TokenCase) -> str | None:
        if name == "flex" and case.backward:
            return "its log-sum-exp is compared forward alone"
        if name in ("given_lse", "sdpa") and case.backward:
            return "it is shown forward alone"
        return super().lacking(name, case)


def _in_float64(x: Inputs) -> Inputs:
    query, key = (t.detach().double().requires_grad_(x.grad_out is not None) for t in (x.query, x.key))
    return Inputs(query, key, x.rows, None if x.grad_out is None else x.grad_out.double())


def _sum_over_heads(x: Inputs, image: int) -> tuple[Tensor, ...]:
    heads = x.query.shape[2]
    one = slice(image, image + 1)
    parts = []
    for i in range(heads):
        grad_out = None if x.grad_out is None else x.grad_out[one] / heads
        head = (one, slice(None), slice(i, i + 1))
        parts.append(results(maps, _in_float64(Inputs(x.query[head], x.key[head], None, grad_out))))
    out, *gradients = zip(*parts, strict=True)
    return (torch.stack(out).mean(0), *(torch.cat(gradient, 2) for gradient in gradients))
