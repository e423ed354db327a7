"""Local cross-attention at the papers' shapes, against every way to compute the same today."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Bench, Contender, results
from vr_kernels.cli.measure.local_cross_attention import contenders
from vr_kernels.cli.measure.local_cross_attention.cases import SHAPES, Inputs, WindowCase, make_inputs
from vr_kernels.cli.measure.local_cross_attention.contenders import BASELINES, CUDA_ONLY


class LocalCrossAttentionBench(Bench[WindowCase, Inputs]):
    name = "local_cross_attention"
    title = "local cross-attention"
    case_type = WindowCase
    shapes = SHAPES
    default = ("v1", "v2", "s4")
    baselines = BASELINES
    cuda_only = CUDA_ONLY

    def quantities(self, case: WindowCase) -> Sequence[str]:
        gradients = ("query gradient", "key_weight gradient", "value_weight gradient")
        return ("output", *gradients) if case.backward else ("output",)

    def inputs(self, case: WindowCase) -> Inputs:
        return make_inputs(case)

    def exact(self, case: WindowCase, x: Inputs) -> tuple[Tensor, ...]:
        """The naive form, image by image: its windows are held for one image at a time."""
        images = [results(contenders.naive, x.to_float64(image)) for image in range(x.query.shape[0])]
        columns = list(zip(*images, strict=True))
        of_tokens = [torch.cat(column) for column in columns[:2]]  # output and query gradient
        of_weights = [torch.stack(column).sum(0) for column in columns[2:]]
        return tuple(exact.detach() for exact in (*of_tokens, *of_weights))

    def contender(self, name: str, case: WindowCase) -> Contender[Inputs]:
        return contenders.make_contender(name, case)

    def chosen(self, case: WindowCase, x: Inputs) -> str:
        return contenders.chosen_backend(x)

    def operations(self, case: WindowCase) -> float:
        """Forward, a query: u = W_k^T q and o = W_v g (2 C E each); scores and pooling (2 h K C each).

        Backward with frozen features: dg, dW_v, dq and dW_k (2 C E each); dp and du (2 h K C each).
        """
        square, pooled = case.channels**2, case.heads * case.keys * case.channels
        forward, backward = 4 * square + 4 * pooled, 8 * square + 4 * pooled
        return case.queries * float(forward + backward if case.backward else forward)

    def bytes_moved(self, case: WindowCase) -> float:
        """Inputs, weights and output once each; with a backward pass the output's gradient and three gradients."""
        tokens, weights = case.queries * case.channels, 2 * case.channels**2
        features = case.images * case.grid**2 * case.channels
        once = features + weights + 2 * tokens
        if case.backward:
            once += 2 * tokens + weights
        return float(once * case.torch_dtype.itemsize)

    def lacking(self, name: str, case: WindowCase) -> str | None:
        if name == "graph" and case.backward:
            return "it is captured forward alone"
        return super().lacking(name, case)
