"""The bidirectional layer, hidden states in to hidden states out, against concatenation, SDPA and scatter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vr_kernels.cli.measure.bench import Bench, Contender, results
from vr_kernels.cli.measure.bidirectional_attention import contenders
from vr_kernels.cli.measure.bidirectional_attention.cases import SHAPES, Inputs, LayerCase, make_inputs
from vr_kernels.cli.measure.bidirectional_attention.contenders import BASELINES


class BidirectionalAttentionBench(Bench[LayerCase, Inputs]):
    name = "bidirectional_attention"
    title = "bidirectional layer"
    case_type = LayerCase
    shapes = SHAPES
    default = ("v2", "v2-base", "s2", "qwen-1.5b")
    baselines = BASELINES

    def quantities(self, case: LayerCase) -> Sequence[str]:
        gradients = ("hidden_states gradient", "norm_weight gradient", "qkv_proj gradient", "out_proj gradient")
        return ("output", *gradients) if case.backward else ("output",)

    def inputs(self, case: LayerCase) -> Inputs:
        return make_inputs(case)

    def exact(self, case: LayerCase, x: Inputs) -> tuple[Tensor, ...]:
        return tuple(result.detach() for result in results(contenders.naive, x.to_float64()))

    def contender(self, name: str, case: LayerCase) -> Contender[Inputs]:
        return contenders.make_contender(name)

    def chosen(self, case: LayerCase, x: Inputs) -> str:
        return contenders.chosen_backends(x)

    def operations(self, case: LayerCase) -> float:
        """Of N tokens and their guide: q and the output (2 D² each), k and v (4 D² a key), scores and mix (4 N D).

        Backward: each projection twice, and five products of attention's size for two.
        """
        n, keys, d = case.tokens, case.tokens + 1, case.width
        projections, attention = 4 * n * d * d + 4 * keys * d * d, 4 * n * keys * d
        image = 3 * projections + 3.5 * attention if case.backward else projections + attention
        return float(case.batch * image)

    def bytes_moved(self, case: LayerCase) -> float:
        """Stream in and out, and the weights; with a backward pass their gradients and the output's."""
        once = 2 * case.batch * case.length * case.width + 4 * case.width**2
        return float((2 * once if case.backward else once) * case.torch_dtype.itemsize)
