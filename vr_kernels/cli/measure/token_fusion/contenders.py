"""Who is compared: ours, and the linear and the convolutional form, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Contender, compiled, results
from vr_kernels.cli.measure.token_fusion.cases import Inputs

Forward = Callable[[Inputs], Tensor]


def convolutions(x: Inputs) -> Tensor:
    """Levels concatenated channels first, then conv2d, as the paper's code has it."""
    out = torch.cat([level.permute(0, 3, 1, 2) for level in x.features], 1)
    for layer, weight, bias in x.steps():
        out = F.conv2d(out, weight.unflatten(1, (-1, layer.kernel, layer.kernel)), bias, stride=layer.kernel)
        out = F.gelu(out) if layer.gelu else out
    return out.permute(0, 2, 3, 1)


def operator(backend: str | None) -> Forward:
    def forward(x: Inputs) -> Tensor:
        features: Tensor | list[Tensor] = x.features
        for layer, weight, bias in x.steps():
            activation = "gelu" if layer.gelu else None
            features = vr_kernels.patch_linear(
                features, weight, bias, kernel_size=layer.kernel, activation=activation, backend=backend
            )
        assert isinstance(features, Tensor)
        return features

    return forward


def chosen_backend(x: Inputs) -> str:
    return vr_kernels.explain(
        vr_kernels.patch_linear, x.features, x.weights[0], x.biases[0], kernel_size=x.layers[0].kernel
    ).chosen


BASELINES = ("linear", "conv", "compiled_linear", "compiled_conv", "triton")

# "linear" is patch_linear's own stock form: concatenation, patches gathered by copy, F.linear, F.gelu.
EAGER: dict[str, tuple[str, Forward]] = {
    "ours": ("what vr_kernels chooses", operator(None)),
    "linear": ("concat, patches copied, linear, GELU", operator("linear")),
    "conv": ("concat, conv2d, GELU", convolutions),
    "triton": ("Triton kernel", operator("triton")),
}


def make_contender(name: str) -> Contender[Inputs]:
    """A contender by name; what cannot run here shows when it is first called."""
    what, forward = EAGER[name.removeprefix("compiled_")]
    if name.startswith("compiled_"):
        what, forward = f"{what}, under torch.compile", compiled(forward)
    return Contender(name, what, partial(results, forward))
