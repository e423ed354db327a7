"""Token fusion at LLaVA-1.5's sizes, against the linear and the convolutional form."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vr_kernels.cli.measure.bench import TRITON_ALONE, Bench, Contender, results
from vr_kernels.cli.measure.token_fusion import contenders
from vr_kernels.cli.measure.token_fusion.cases import SHAPES, FusionCase, Inputs, make_inputs
from vr_kernels.cli.measure.token_fusion.contenders import BASELINES


class TokenFusionBench(Bench[FusionCase, Inputs]):
    name = "token_fusion"
    title = "token fusion"
    case_type = FusionCase
    shapes = SHAPES
    default = ("mbtf", "stf", "stf_code")
    baselines = BASELINES
    cuda_only = TRITON_ALONE
    yardstick = "linear"

    def quantities(self, case: FusionCase) -> Sequence[str]:
        numbers = range(1, len(case.widths) + 1)
        gradients = [f"{kind} {number} gradient" for kind in ("weight", "bias") for number in numbers]
        return ("output", *gradients) if case.backward else ("output",)

    def inputs(self, case: FusionCase) -> Inputs:
        return make_inputs(case)

    def exact(self, case: FusionCase, x: Inputs) -> tuple[Tensor, ...]:
        exact = results(contenders.operator("linear"), x.to_float64())
        return tuple(result.detach() for result in exact)

    def contender(self, name: str, case: FusionCase) -> Contender[Inputs]:
        return contenders.make_contender(name)

    def chosen(self, case: FusionCase, x: Inputs) -> str:
        return contenders.chosen_backend(x)

    def operations(self, case: FusionCase) -> float:
        """A multiplication and an addition an entry of each product: out; backward dW, and dX of all but the first."""
        total = 0
        for number, layer in enumerate(case.layers):
            product = 2 * case.batch * layer.patches * layer.columns * layer.out
            total += product * (1 if not case.backward else 2 if number == 0 else 3)
        return float(total)

    def bytes_moved(self, case: FusionCase) -> float:
        """Features, weights, biases and output once each; backward the gradients of all but the features too."""
        features = case.batch * case.grid**2 * sum(case.levels)
        trained = sum(layer.out * (layer.columns + 1) for layer in case.layers)
        out = case.batch * case.layers[-1].patches * case.widths[-1]
        return float((features + (trained + out) * (2 if case.backward else 1)) * case.torch_dtype.itemsize)
