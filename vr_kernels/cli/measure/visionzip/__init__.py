"""VisionZip, the encoder included: what choosing tokens costs, and what attention maps would."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Bench, Contender
from vr_kernels.cli.measure.visionzip import contenders
from vr_kernels.cli.measure.visionzip.cases import SHAPES, Inputs, TowerCase, make_inputs


class VisionZipBench(Bench[TowerCase, Inputs]):
    name = "visionzip"
    title = "VisionZip on its tower"
    case_type = TowerCase
    shapes = SHAPES
    default = ("clip-l",)
    baselines = tuple(name for name in contenders.FORMS if name != "ours")
    yardstick = "eager"
    outputs = 2

    def quantities(self, case: TowerCase) -> Sequence[str]:
        return ("CLS row", "scores") if case.scored else ("CLS row",)

    def inputs(self, case: TowerCase) -> Inputs:
        return make_inputs(case)

    def exact(self, case: TowerCase, x: Inputs) -> tuple[Tensor, ...]:
        """Image by image; a full tower's maps would not fit beside it, and only its CLS row is compared."""
        form = contenders.eager if case.scored else contenders.plain
        tower = copy.deepcopy(x.eager if case.scored else x.sdpa).double()
        images = [replace(x, sdpa=tower, eager=tower, images=image[None].double()) for image in x.images]
        columns = zip(*(contenders.results(form, case, image) for image in images), strict=True)
        return tuple(torch.cat(column) for column in columns)

    def contender(self, name: str, case: TowerCase) -> Contender[Inputs]:
        return contenders.make_contender(name, case)

    def chosen(self, case: TowerCase, x: Inputs) -> str:
        """Of the only operator that has a choice, ``attention_importance``; it gets float32."""
        head = case.width // case.heads
        key = torch.empty(case.batch, case.rows, case.heads, head, device=case.device)
        return f"{vr_kernels.explain(vr_kernels.attention_importance, key[:, :1], key).chosen} for the scores"

    def operations(self, case: TowerCase) -> float:
        """The blocks up to the one that is zipped: projections, attention and MLP of all rows, and the patches."""
        block = case.rows * (8 * case.width**2 + 4 * case.width * case.inner) + 4 * case.rows**2 * case.width
        patches = 2 * case.patches * 3 * case.patch**2 * case.width
        return float(case.batch * ((case.blocks - 1) * block + patches))

    def bytes_moved(self, case: TowerCase) -> float:
        """Those blocks' weights, the pixels and the tokens once each."""
        weights = (case.blocks - 1) * (4 * case.width**2 + 2 * case.width * case.inner)
        images = case.batch * (3 * case.image**2 + (case.dominant + case.contextual) * case.width)
        return float((weights + images) * case.torch_dtype.itemsize)
