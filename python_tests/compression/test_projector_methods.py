"""Every projector against its authors' form in stock PyTorch, by the error rule; and against transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from python_tests._cases import Call
from python_tests._errors import assert_obeys_the_error_rule
from python_tests.compression._projector_oracles import ORACLES
from python_tests.compression._projectors import HIDDEN, NAMES, WHOLE, features, projector
from vr_kernels.compression import build_projector

RAGGED = [name for name in NAMES if name not in WHOLE]
CASES = [(name, (4, 6), (2, 2)) for name in NAMES] + [(name, (5, 7), (2, 3)) for name in RAGGED]
CASES += [(name, (4, 6), (2, 3)) for name in NAMES if name != "stf"] + [("stf", (3, 3), (3, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "grid", "window"), CASES, ids=str)
def test_it_is_its_authors_form(name: str, grid: tuple[int, int], window: tuple[int, int], dtype: torch.dtype) -> None:
    module = projector(name, window)
    names = [parameter_name for parameter_name, _ in module.named_parameters()]

    def drawn(parameter_name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
        weight = torch.randn(parameter.shape, generator=generator)
        if "sampling_offsets" in parameter_name:  # away from the features, where bilinear sampling has its kinks
            whole = torch.randint(-2, 3, parameter.shape, generator=generator) if parameter.dim() == 1 else -0.2
            return whole + 0.2 + weight * 0.01
        weight = weight * (parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
        return weight + ("norm" in parameter_name or "ln_" in parameter_name)

    def draw(seed: int) -> Call:
        generator = torch.Generator().manual_seed(seed)
        weights = [drawn(*named, generator).to(dtype) for named in module.named_parameters()]
        return {"levels": features(name, grid, dtype=dtype, seed=seed), "weights": weights}

    def ours(levels: list[Tensor], weights: list[Tensor]) -> Tensor:
        return functional_call(module, dict(zip(names, weights, strict=True)), (levels,)).tokens

    def stock(levels: list[Tensor], weights: list[Tensor]) -> Tensor:
        return ORACLES[name](dict(zip(names, weights, strict=True)), levels, module.output_grid(*grid))

    # In float32 the largest of a few hundred errors says little; the root mean square is what the rule is about.
    assert_obeys_the_error_rule(ours, stock, stock, draw, norms=("root_mean_square",))


def test_the_mlp_is_transformers_llava_next_projector_with_its_state_dict() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
    from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

    sizes: dict[str, Any] = {"intermediate_size": 8, "num_attention_heads": 2}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(hidden_size=10, **sizes),
        text_config=LlamaConfig(hidden_size=HIDDEN, **sizes),
        vision_feature_layer=-2,
    )
    theirs, ours = LlavaNextMultiModalProjector(config), projector("mlp")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    levels = features("mlp")
    assert torch.equal(ours(levels).tokens, theirs(levels[0].flatten(1, 2)))


def test_pixel_shuffle_is_transformers_internvl_with_its_state_dict() -> None:
    from transformers import InternVLConfig
    from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

    config = InternVLConfig()
    config.vision_config.hidden_size, config.text_config.hidden_size = 10, HIDDEN
    theirs, ours = InternVLMultiModalProjector(config), projector("pixel_shuffle")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    levels = features("pixel_shuffle", (4, 4))
    shuffled = InternVLModel.pixel_shuffle(None, levels[0].contiguous(), scale_factor=0.5)
    expected = theirs(shuffled.flatten(1, 2))
    torch.testing.assert_close(ours(levels).tokens, expected, rtol=1e-6, atol=1e-6)


def test_stf_s_code_variant_has_no_last_gelu() -> None:
    module = build_projector("stf", feature_dims=(4, 4), hidden_size=HIDDEN, variant="code")
    torch.nn.init.normal_(module.stf.conv2.weight)
    tokens = module([torch.randn(1, 4, 4, 4) for _ in range(2)]).tokens
    assert tokens.min() < -0.2  # below the least value of GELU


def test_token_packer_s_query_is_the_window_s_mean_at_two_and_its_centre_at_three() -> None:
    from vr_kernels.compression.projectors.token_packer import _resized

    level = torch.randn(1, 6, 6, 5)
    mean = level.unflatten(2, (3, 2)).unflatten(1, (3, 2)).mean((2, 4))
    torch.testing.assert_close(_resized(level, (3, 3)), mean)
    assert torch.equal(_resized(level, (2, 2)), level[:, 1::3, 1::3])


def test_a_nan_reaches_no_window_but_its_own() -> None:
    module, levels = projector("pool"), features("pool", (5, 7))
    levels[0][:, 0, 0] = torch.nan  # ragged windows: absent slots are read from row 0, and must not count
    tokens = module(levels).tokens.unflatten(1, (3, 4))
    assert tokens[:, 0, 0].isnan().all()
    tokens[:, 0, 0] = 0
    assert tokens.isfinite().all()
