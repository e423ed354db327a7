"""LLaVA-VR: what Vision Remember costs a whole model, beside other ways to hand on fewer tokens, and all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Bench, Contender
from vr_kernels.cli.measure.llava_vr.cases import LAYERS, SHAPES, ModelCase, operations, parameters_read
from vr_kernels.cli.measure.llava_vr.models import BASELINE, NAMES, WITH_BLOCKS, Subjects, make_subjects, refusal, what
from vr_kernels.cli.measure.llava_vr.parts import details_of


class LlavaVRBench(Bench[ModelCase, Subjects]):
    name = "llava_vr"
    title = "LLaVA-VR, time to the first token"
    case_type = ModelCase
    shapes = SHAPES
    default = ("v2",)
    baselines = (BASELINE, *(name for name in NAMES if name not in ("ours", BASELINE)))
    yardstick = "naive"

    def quantities(self, case: ModelCase) -> Sequence[str]:
        return ("logits",)

    def truth(self, case: ModelCase) -> str:
        return "float64" if case.trained else "the model without blocks"

    def inputs(self, case: ModelCase) -> Subjects:
        return make_subjects(case)

    def exact(self, case: ModelCase, x: Subjects) -> tuple[Tensor, ...]:
        """With trained blocks in float64, but for the decoder's norms, which transformers computes in float32. New
        blocks add nothing: no error is above 0 if the logits are those of the model without them, bit for bit."""
        if not case.trained:
            return tuple(result.double() for result in self.contender(BASELINE, case)(x))
        return self.contender("naive", case)({"naive": x["naive"].double()})

    def contender(self, name: str, case: ModelCase) -> Contender[Subjects]:
        compared = name in WITH_BLOCKS or (name == BASELINE and not case.trained)

        def run(x: Subjects) -> tuple[Tensor, ...]:
            with torch.inference_mode(), x[name] as subject:
                logits = subject.model(**subject.inputs, use_cache=True, logits_to_keep=1).logits  # (B, 1, V)
            return (logits,) if compared else ()

        return Contender(name, what(name), run)

    def chosen(self, case: ModelCase, x: Subjects) -> str:
        layer = x["ours"].blocks[LAYERS[0]].cross_attention
        assert layer is not None
        cells = case.side // case.window
        query = torch.empty(case.batch * case.tiles, cells, cells, 3 * case.vision_width, dtype=case.torch_dtype)
        level = torch.empty(case.batch * case.tiles, case.side, case.side, case.vision_width, dtype=case.torch_dtype)
        explained = vr_kernels.explain(
            vr_kernels.local_cross_attention,
            query.to(case.device),
            [level.to(case.device)] * 3,
            layer.attention.key_weight,
            layer.attention.value_weight,
            num_heads=case.heads,
        )
        return f"{explained.chosen} for the windows of {what('ours')}"

    def operations(self, case: ModelCase) -> float:
        return float(case.batch * sum(operations(case).values()))

    def bytes_moved(self, case: ModelCase) -> float:
        return parameters_read(case) * case.torch_dtype.itemsize

    def lacking(self, name: str, case: ModelCase) -> str | None:
        return refusal(case, name)

    def details(self, case: ModelCase, x: Subjects, name: str) -> dict[str, float]:
        return details_of(x[name], case.answer, case.device)
