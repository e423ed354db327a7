"""Projections that are more than their weight: honoured as they present themselves, never read past."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.utils import parametrize

from vr_kernels import LocalCrossAttention

WIDTHS = (8, 16)
WEIGHTS = ["key_weight", "value_weight"]


class Model(nn.Module):
    """A module inside a model: adapters name what they adapt from there."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = LocalCrossAttention(16, WIDTHS, num_heads=2, bias=True, feature_norm="level")

    def forward(self, query: Tensor, levels: list[Tensor]) -> Tensor:
        return self.attention(query, levels)


def inputs() -> tuple[Tensor, list[Tensor]]:
    return torch.randn(2, 2, 3, 16), [torch.randn(2, 4, 9, width) for width in WIDTHS]


def with_weight(model: Model, name: str, weight: Tensor) -> Model:
    """A plain model whose parameter ``name`` is ``weight``."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        plain.get_parameter(f"attention.{name}").copy_(weight)
    return plain


class LowRank(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@pytest.mark.parametrize("name", ["key_weight", "value_weight", "query_proj.weight", "out_proj.weight", "norm_weight"])
def test_a_parametrised_weight_is_honoured(name: str) -> None:
    model, (query, levels) = Model(), inputs()
    original = model.attention.get_parameter(name).detach().clone()
    change: nn.Module = nn.Softplus() if name == "norm_weight" else LowRank(*original.shape)
    expected = with_weight(model, name, change(original))(query, levels)
    holder, _, attribute = f"attention.{name}".rpartition(".")
    parametrize.register_parametrization(model.get_submodule(holder), attribute, change)
    out = model(query, levels)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    for parameter in change.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def lora(model: Model, **targets: Any) -> nn.Module:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0, init_lora_weights=False, **targets)
    return peft.get_peft_model(model, config)


def difference(adapted: nn.Module, name: str) -> Tensor:
    """What LoRA adds to the weight ``name``: 3 B A."""
    parameters = {k: v for k, v in adapted.named_parameters() if name in k}
    down, up = (next(v for k, v in parameters.items() if f"lora_{x}" in k) for x in "AB")
    return 3 * up @ down


@pytest.mark.parametrize("name", ["query_proj", "out_proj"])
def test_lora_on_a_projection_is_honoured(name: str) -> None:
    model, (query, levels) = Model(), inputs()
    plain = copy.deepcopy(model)
    adapted = lora(model, target_modules=[name])
    weight = plain.attention.get_parameter(f"{name}.weight") + difference(adapted, name)
    out = adapted(query, levels)
    torch.testing.assert_close(out, with_weight(plain, f"{name}.weight", weight)(query, levels), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert all(v.grad is not None and v.grad.any() for k, v in adapted.named_parameters() if "lora_" in k)
    with pytest.raises(TypeError, match=rf"fold_: {name} is a Linear; it must be a plain torch.nn.Linear"):
        model.attention.fold_()


@pytest.mark.parametrize("name", WEIGHTS)
def test_lora_on_a_parameter_is_honoured(name: str) -> None:
    model, (query, levels) = Model(), inputs()
    plain = copy.deepcopy(model)
    adapted = lora(model, target_parameters=[f"attention.{name}"])
    weight = plain.attention.get_parameter(name) + difference(adapted, "lora")
    out = adapted(query, levels)
    torch.testing.assert_close(out, with_weight(plain, name, weight)(query, levels), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert all(v.grad is not None and v.grad.any() for k, v in adapted.named_parameters() if "lora_" in k)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")  # as any Linear's output is
@pytest.mark.usefixtures("process_group")
def test_fully_shard_is_honoured() -> None:
    model, (query, levels) = Model(), inputs()
    plain = copy.deepcopy(model)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    assert type(model.attention.key_weight).__name__ == "DTensor"
    out, expected = model(query, levels), plain(query, levels)
    torch.testing.assert_close(out, expected)
    for result in (out, expected):
        result.square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad.full_tensor(), parameter.grad, msg=name)


@pytest.mark.parametrize("name", [*WEIGHTS, "value_bias", "norm_weight"])
@pytest.mark.usefixtures("process_group")
def test_a_sharded_parameter_is_honoured_or_refused(name: str) -> None:
    model, (query, levels) = Model(), inputs()
    expected = model(query, levels)
    mesh = dist.init_device_mesh("cpu", (1,))
    sharded = nn.Parameter(distribute_tensor(model.attention.get_parameter(name).detach(), mesh, [Replicate()]))
    model.attention.register_parameter(name, sharded)
    assert_honoured_or_refused(model, query, levels, expected)
    with pytest.raises(TypeError, match=f"fold_: {name} is a .*; only a plain Parameter can be folded"):
        model.attention.fold_()


class Doubled(Tensor):
    """Stored halved: what it is worth appears only when torch computes with it, as in a quantised weight."""

    @staticmethod
    def __new__(cls, stored: Tensor) -> Doubled:
        return Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype, requires_grad=stored.requires_grad)

    def __init__(self, stored: Tensor) -> None:
        self.stored = stored

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(function(args[0].stored))
        plain = torch.utils._pytree.tree_map(lambda x: 2 * x.stored if isinstance(x, cls) else x, (args, kwargs or {}))
        return function(*plain[0], **plain[1])


def assert_honoured_or_refused(model: Model, query: Tensor, levels: list[Tensor], expected: Tensor) -> None:
    try:
        out = model(query, levels)
    except (TypeError, ValueError, RuntimeError) as error:
        words = str(error)
    else:
        torch.testing.assert_close(out, expected)
        return
    # Ours names the operator; torch's own, below it, names the subclass.
    assert any(name in words for name in ("local_cross_attention", "DTensor", "Doubled"))


@pytest.mark.parametrize("name", [*WEIGHTS, "key_bias", "value_bias", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_tensor_subclass_is_honoured_or_refused(gradients: bool, name: str) -> None:
    model, (query, levels) = Model(), inputs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    expected = model(query, levels)
    halved = Doubled(model.attention.get_parameter(name).detach() / 2)
    model.attention.register_parameter(name, nn.Parameter(halved, requires_grad=gradients))
    assert_honoured_or_refused(model, query, levels, expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_a_subclass_runs_unabsorbed(name: str) -> None:
    # Honoured, not merely refused: F.linear is where a subclass's own rules apply.
    model, (query, levels) = Model(), inputs()
    expected = model(query, levels)
    halved = Doubled(model.attention.get_parameter(name).detach() / 2)
    model.attention.register_parameter(name, nn.Parameter(halved, requires_grad=False))
    torch.testing.assert_close(model(query, levels), expected)
    model.attention.backend = "cpu"
    with pytest.raises(ValueError, match=r"backend='cpu' cannot run this call: .*Doubled"):
        model(query, levels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_of_the_linears_is_honoured() -> None:
    model, (query, levels) = Model(), inputs()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(quantised.attention.query_proj) is not nn.Linear
    with torch.no_grad():
        plain = copy.deepcopy(model.attention)
        plain.query_proj = plain.out_proj = nn.Identity()
        expected = quantised.attention.out_proj(plain(quantised.attention.query_proj(query), levels))
        torch.testing.assert_close(quantised(query, levels), expected, rtol=0, atol=0)
    assert not torch.equal(quantised(query, levels), model(query, levels))
    with pytest.raises(TypeError, match=r"fold_: query_proj is a Linear; it must be a plain torch\.nn\.Linear"):
        quantised.attention.fold_()
