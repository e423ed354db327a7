"""The absorbed form's one exception to the error rule: a window whose features share most of what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vr_kernels import local_cross_attention


@pytest.mark.parametrize("backend", ["cpu", "absorbed"])
def test_it_errs_at_most_three_times_as_much_as_the_projected_form(backend: str) -> None:
    errors: dict[str, list[float]] = {backend: [], "reference": []}
    for seed in range(4):
        torch.manual_seed(seed)
        window, width = 4, 256
        features = 3 * torch.randn(width) + torch.randn(1, 4 * window, 4 * window, width)
        call = {
            "query": torch.randn(1, 4, 4, 128),
            "features": features,
            "key_weight": torch.randn(128, width) / 16,
            "value_weight": torch.randn(128, width) / 16,
            "norm_weight": torch.ones(width),
        }

        def run(name: str, given: dict[str, Tensor]) -> Tensor:
            return local_cross_attention(**given, num_heads=4, backend=name)  # type: ignore[arg-type,return-value]

        exact = run("reference", {name: value.double() for name, value in call.items()})
        for name, found in errors.items():
            found.append(float((run(name, call).double() - exact).square().mean()))
    ratio = (sum(errors[backend]) / sum(errors["reference"])) ** 0.5

    assert 1.5 < ratio < 3
