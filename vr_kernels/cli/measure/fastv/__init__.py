"""FastV, the decoder's prefill included: what choosing tokens costs, what one eager layer would, and what both save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Bench, Contender
from vr_kernels.cli.measure.fastv import contenders
from vr_kernels.cli.measure.fastv.cases import SHAPES, Inputs, PromptCase, decoder, make_inputs


class FastVBench(Bench[PromptCase, Inputs]):
    name = "fastv"
    title = "FastV on its decoder"
    case_type = PromptCase
    shapes = SHAPES
    default = ("qwen2-0.5b",)
    baselines = tuple(name for name in contenders.FORMS if name != "ours")
    yardstick = "eager"
    outputs = 2

    def quantities(self, case: PromptCase) -> Sequence[str]:
        return ("keys", "last token") if case.scored else ("keys",)

    def inputs(self, case: PromptCase) -> Inputs:
        return make_inputs(case)

    def exact(self, case: PromptCase, x: Inputs) -> tuple[Tensor, ...]:
        """Of a full decoder only the layers up to the scored one: more in float64 might not fit beside it."""
        layers = case.layers if case.scored else case.layer
        models = [decoder(replace(case, layers=layers), attention).double() for attention in ("sdpa", "eager")]
        weights = {name: weight.double() for name, weight in x.sdpa.state_dict().items()}
        for model in models:
            model.to(case.device)
            model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
        wide = replace(x, sdpa=models[0], eager=models[1], embeddings=x.embeddings.double())
        return contenders.results(contenders.eager if case.scored else contenders.plain, case, wide)

    def contender(self, name: str, case: PromptCase) -> Contender[Inputs]:
        return contenders.make_contender(name, case)

    def chosen(self, case: PromptCase, x: Inputs) -> str:
        """Of the only operator that has a choice, ``attention_importance``; it gets float32."""
        head = case.width // case.heads
        query = torch.empty(case.batch, 1, case.heads, head, device=case.device)
        key = torch.empty(case.batch, case.rows, case.kv_heads, head, device=case.device)
        return f"{vr_kernels.explain(vr_kernels.attention_importance, query, key).chosen} for the scores"

    def operations(self, case: PromptCase) -> float:
        """Projections, MLP and the causal half of attention, of all rows and then of those that are left."""
        products = 4 * case.width * (case.width + case.key_width) + 6 * case.width * case.inner
        rows = [case.rows] * case.layer + [case.rows_left] * (case.layers - case.layer)
        return float(case.batch * sum(n * products + 2 * n * n * case.width for n in rows))

    def bytes_moved(self, case: PromptCase) -> float:
        """The weights, the embeddings, the keys and values that are cached, and what comes out once each."""
        weights = case.layers * (2 * case.width * (case.width + case.key_width) + 3 * case.width * case.inner)
        cached = case.layer * case.rows + (case.layers - case.layer) * case.rows_left
        prompts = case.batch * (2 * case.rows * case.width + 2 * cached * case.key_width)
        return float((weights + prompts) * case.torch_dtype.itemsize)
