"""MBTF and STF against the same built of ``nn.Conv2d`` on a concatenation, and the baselines they are compared with."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vr_kernels
from python_tests._cases import DTYPES
from python_tests._errors import assert_obeys_the_error_rule
from vr_kernels.nn import MultiBlockTokenFusion, SpatialTokenFusion, TokenAvgPool, TokenConcat, fusion_levels

DIMS = (6, 4, 9)


class ConvolutionalMBTF(nn.Module):
    """Eq. 1 as the paper's code would write it: channels first, on a concatenation."""

    def __init__(self, dims: Sequence[int], hidden: int, out: int, variant: str) -> None:
        super().__init__()
        last = [nn.GELU()] if variant == "paper" else []
        self.layers = nn.Sequential(nn.Conv2d(sum(dims), hidden, 1), nn.GELU(), nn.Conv2d(hidden, out, 1), *last)

    def forward(self, *levels: Tensor) -> Tensor:
        return self.layers(torch.cat(levels, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvolutionalSTF(nn.Module):
    """Eq. 2 and what follows, channels first; a window's E tokens are slices of the first convolution's channels."""

    def __init__(self, dim: int, hidden: int, out: int, k: int, tokens: int, variant: str) -> None:
        super().__init__()
        first = k * k * dim if variant == "paper" else hidden
        width = first // tokens
        self.first, self.tokens = nn.Conv2d(dim, first, k, stride=k), tokens
        if variant == "paper":
            others = [nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, out, 1), nn.GELU()]
        else:
            others = [nn.Conv2d(width, out, 1)]
        self.others = nn.Sequential(*others)

    def forward(self, features: Tensor) -> Tensor:
        fused = nn.functional.gelu(self.first(features.permute(0, 3, 1, 2)))  # (B, E * width, n_h, n_w)
        tokens = [self.others(part).flatten(2).transpose(1, 2) for part in fused.chunk(self.tokens, 1)]
        return torch.stack(tokens, 2).flatten(1, 2)  # (B, n_h * n_w * E, out)


def mbtf_pair(variant: str, dtype: torch.dtype = torch.float32) -> tuple[MultiBlockTokenFusion, ConvolutionalMBTF]:
    stock = ConvolutionalMBTF(DIMS, 21, 7, variant).to(dtype)
    ours = MultiBlockTokenFusion(DIMS, 21, 7, variant=variant, dtype=dtype)
    return ours.load_layers_(stock.state_dict()), stock


def stf_pair(
    variant: str, k: int, tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[SpatialTokenFusion, ConvolutionalSTF]:
    sizes: dict[str, Any] = {"kernel_size": k, "tokens": tokens, "hidden_dim": 24, "variant": variant}
    stock = ConvolutionalSTF(6, 24, 5, k, tokens, variant).to(dtype)
    ours = SpatialTokenFusion(6, 5, dtype=dtype, **sizes)
    return ours.load_layers_(stock.state_dict()), stock


def levels_of(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Hidden states without their CLS row: odd grid, not contiguous."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1 + 5 * 7, d, generator=g).to(dtype)[:, 1:].unflatten(1, (5, 7)) for d in DIMS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_mbtf_is_two_convolutions_of_the_concatenation(variant: str, dtype: torch.dtype) -> None:
    ours, stock = mbtf_pair(variant, dtype)
    exact = copy.deepcopy(stock).double()

    def draw(seed: int) -> dict[str, Tensor]:
        return dict(zip("abc", levels_of(dtype, seed), strict=True))

    assert_obeys_the_error_rule(
        lambda a, b, c: ours([a, b, c]), lambda **x: stock(*x.values()), lambda **x: exact(*x.values()), draw
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize(("k", "tokens"), [(1, 1), (2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (4, 8)])
def test_stf_is_its_convolutions(variant: str, k: int, tokens: int, dtype: torch.dtype) -> None:
    ours, stock = stf_pair(variant, k, tokens, dtype)
    exact = copy.deepcopy(stock).double()

    def draw(seed: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        return {"features": torch.randn(2, k * 3, k, 6, generator=g).to(dtype)}

    assert_obeys_the_error_rule(ours, stock, exact, draw)
    n_h, n_w, e = ours.output_grid(k * 3, k)
    assert (n_h, n_w, e) == (3, 1, tokens)
    assert ours(draw(0)["features"]).shape == (2, n_h * n_w * e, 5)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_weights_get_the_gradients_of_the_convolutions_weights(variant: str) -> None:
    ours, stock = mbtf_pair(variant)
    for module, arguments in ((ours, (levels_of(torch.float32),)), (stock, levels_of(torch.float32))):
        module(*arguments).square().sum().backward()
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.flatten(1) if theirs.dim() == 4 else theirs.grad)


def test_the_default_sizes_are_those_of_llava_1_5() -> None:
    with torch.device("meta"):
        mbtf = MultiBlockTokenFusion((1024,) * 8)
        paper, code = SpatialTokenFusion(1024, 4096), SpatialTokenFusion(1024, 4096, variant="code")

    def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")}

    assert shapes(mbtf) == {"conv1.weight": (4096, 8192), "conv2.weight": (1024, 4096)}
    assert shapes(paper) == {
        "conv1.weight": (4096, 4096), "conv2.weight": (16384, 4096), "conv3.weight": (4096, 16384),
    }  # fmt: skip
    assert shapes(code) == {"conv1.weight": (16384, 4096), "conv2.weight": (4096, 16384)}


def linear_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as Linear layers keep them, under a projector's names."""
    names = {name.rsplit(".", 1)[0]: f"mm_projector.{2 * i}" for i, name in enumerate(dict.fromkeys(
        name for name in state if name.endswith("weight")))}  # fmt: skip
    return {
        f"{names[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}": tensor.flatten(1) if tensor.dim() == 4 else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_weights_of_both_layouts_load(variant: str) -> None:
    ours, stock = stf_pair(variant, 2, 2)
    other = SpatialTokenFusion(6, 5, tokens=2, hidden_dim=24, variant=variant)
    state = linear_layout(stock.state_dict()) | {"vision_tower.weight": torch.ones(1)}
    other.load_layers_(state, prefix="mm_projector.")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert list(ours.state_dict()) == [f"conv{i}.{kind}" for i in range(1, len(ours._layers()) + 1)
                                       for kind in ("weight", "bias")]  # fmt: skip


STATE = {"0.weight": torch.ones(21, 19, 1, 1), "0.bias": torch.ones(21),
         "2.weight": torch.ones(7, 21), "2.bias": torch.ones(7)}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.weight": torch.ones(21, 18)}, "0.weight has shape (21, 18); it must be (21, 19, 1, 1) or (21, 19)"),
        ({"2.weight": torch.ones(21, 7)}, "2.weight has shape (21, 7); it must be (7, 21, 1, 1) or (7, 21)"),
        ({"2.bias": torch.ones(1)}, "2.bias has shape (1,); it must be (7,)"),
        ({"2.bias": None}, "2.bias is missing; it must be (7,)"),
        ({"4.weight": torch.ones(7, 7)}, "the state dict has 3 weights under ''; this module has 2 layers"),
        ({"2.weight": None, "2.bias": None}, "the state dict has 1 weights under ''; this module has 2 layers"),
        ({"scale": torch.ones(7)}, "scale is neither the weight of a layer nor its bias"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(change: dict[str, Any], words: str) -> None:
    module = MultiBlockTokenFusion(DIMS, 21, 7)
    before = copy.deepcopy(module.state_dict())
    state = {name: tensor for name, tensor in (STATE | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=re.escape(f"MultiBlockTokenFusion.load_layers_: {words}")):
        module.load_layers_(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def modules() -> list[tuple[nn.Module, Any]]:
    return [
        (mbtf_pair("paper")[0], levels_of(torch.float32)),
        (stf_pair("code", 2, 2)[0], torch.randn(2, 6, 4, 6)),
        (stf_pair("paper", 3, 1)[0], torch.randn(1, 3, 6, 6)),
    ]


def test_copies_and_saved_modules_compute_the_same_bits() -> None:
    for module, features in modules():
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        loaded = copy.deepcopy(module)
        for parameter in loaded.parameters():
            nn.init.zeros_(parameter)
        loaded.load_state_dict(torch.load(buffer))
        assert torch.equal(loaded(features), module(features))
        assert torch.equal(copy.deepcopy(module)(features), module(features))


def test_modules_compile_whole_forward_and_backward() -> None:
    for module, features in modules():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        expected, result = module(features), compiled(features)
        torch.testing.assert_close(result, expected)
        weight = next(module.parameters())
        (d_expected,) = torch.autograd.grad(expected.sum(), weight)
        torch.testing.assert_close(torch.autograd.grad(result.sum(), weight)[0], d_expected)


def test_autocast_computes_in_its_dtype_and_trains_float32_weights() -> None:
    for module, features in modules():
        with torch.autocast("cpu", torch.bfloat16):
            out = module(features)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


def test_levels_come_in_the_order_of_the_variant_s_weights() -> None:
    assert fusion_levels(4, 2) == (2, 4)
    assert fusion_levels(4, 2, variant="code") == (3, 2)
    assert fusion_levels(24, 1, variant="code") == (23,)
    for arguments, words in (((24, 7), "count is 7"), ((24, 0), "count is 0")):
        with pytest.raises(ValueError, match=words):
            fusion_levels(*arguments)
    with pytest.raises(ValueError, match="variant is 'thesis'"):
        fusion_levels(variant="thesis")


def test_average_pooling_is_torch_s() -> None:
    x = torch.randn(2, 6, 9, 5)
    pooled = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(TokenAvgPool(3)(x), pooled)


def test_a_linear_on_concatenated_tokens_is_a_convolution() -> None:
    x, convolution = torch.randn(2, 4, 6, 5), nn.Conv2d(5, 7, 2, stride=2)
    expected = convolution(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    result = nn.functional.linear(TokenConcat(2)(x), convolution.weight.flatten(1), convolution.bias)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("module", [TokenAvgPool(2), TokenConcat(2)], ids=["AvgPool", "TokenConcat"])
def test_the_baselines_refuse_a_grid_that_k_does_not_divide(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"features have shape \(1, 3, 4, 5\); .* multiples of 2"):
        module(torch.ones(1, 3, 4, 5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiBlockTokenFusion(()), "level_dims is (); it must hold one positive width a level"),
        (lambda: MultiBlockTokenFusion((4, 0)), "level_dims is (4, 0)"),
        (lambda: MultiBlockTokenFusion((4,), 0), "hidden_dim is 0; it must be at least 1"),
        (lambda: MultiBlockTokenFusion((4,), variant="x"), 'variant is \'x\'; it must be "paper" or "code"'),
        (lambda: SpatialTokenFusion(4, 4, tokens=3), "tokens is 3; it must divide the 16 channels"),
        (lambda: SpatialTokenFusion(4, 4, kernel_size=0), "kernel_size is 0; it must be at least 1"),
        (lambda: TokenConcat(0), "kernel_size is 0; it must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_levels_of_other_widths_are_refused() -> None:
    module = vr_kernels.MultiBlockTokenFusion(DIMS)
    with pytest.raises(ValueError, match=r"features have widths \(9, 4, 6\), level_dims is \(6, 4, 9\)"):
        module(levels_of(torch.float32)[::-1])
