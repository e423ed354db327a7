"""What a call may end in: a result that the reference confirms, or a refusal in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, floating_tensors, map_tensors
from python_tests._errors import GRADIENTS, VALUES, Comparison
from python_tests.fuzz._calls import Target

# What torch says where an output does not fit: no fault, for nothing but trying can tell.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "bad_alloc")

# Of one call, in units of the largest number that it gives: beyond it is no rounding. The error rule, which
# needs many numbers, holds over all calls together.
GROSS = 64

# Numbers beyond it make a softmax choose by the rounding of its scores: then it only matters what is finite.
LARGE = 1e3

# Where a number that is none makes none of more than the reference does: the absorbed projections add its products with
# other signs, and a log-sum-exp that is none reaches the columns that its row does not see.
SPREADS = ("local_cross_attention", "attention_received")


@dataclass
class Verdicts:
    """How often what came out, and the errors of all results together, by operator, dtype and output."""

    counts: Counter[str] = field(default_factory=Counter)
    comparisons: dict[tuple[str, ...], Comparison] = field(default_factory=lambda: defaultdict(Comparison))

    def judge(self, target: Target, call: Call, *, must_run: bool = False, gradients: bool = False) -> str:
        """ "result", "refusal" or "out of memory"; an AssertionError for anything else."""
        verdict = self._judge(target, call, must_run, gradients)
        self.counts[verdict] += 1
        return verdict

    def _judge(self, target: Target, call: Call, must_run: bool, gradients: bool) -> str:
        try:
            results = run(target, call, None, gradients)
        except (ValueError, TypeError) as refusal:
            if must_run:
                raise AssertionError(f"a right call was refused: {refusal}") from refusal
            check_words(target, str(refusal))
            return "refusal"
        except (RuntimeError, MemoryError) as error:
            if must_run or not is_out_of_memory(error):
                raise AssertionError(f"{target.name}: {type(error).__name__}: {error}") from error
            return "out of memory"
        if any(not is_readable(result) for result in results.values()):
            return "result of another kind"
        reference = "reference" if "backend" in target.parameters else None
        try:
            same = run(target, call, reference, gradients)
            exact = run(target, map_tensors(call, as_double), reference, gradients)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return "result too large for the reference"
            raise
        numbers = [x[x.isfinite()].abs() for x in exact.values() if x.is_floating_point()]
        scale = float(torch.cat([x.flatten() for x in (*numbers, torch.ones(1))]).max())
        numbers = floating_tensors(map_tensors(call, collapsed)).values()
        ill_conditioned = any(not bool((x.abs() <= LARGE).all()) for x in numbers)
        for name, result in results.items():
            close = None if ill_conditioned else scale
            self._compare(target.name, name, result, same[name], exact[name], close)
        return "result"

    def _compare(
        self, operator: str, name: str, result: Tensor, same: Tensor, exact: Tensor, scale: float | None
    ) -> None:
        """Without a ``scale`` only shape, dtype and what is finite."""
        assert result.shape == same.shape, f"{name} is {tuple(result.shape)}, the reference's {tuple(same.shape)}"
        assert result.dtype == same.dtype, f"{name} is {result.dtype}, the reference's {same.dtype}"
        if not result.is_floating_point():
            assert torch.equal(result, same), f"{name} differs from the reference's"
            return
        finite = same.isfinite() & exact.isfinite()
        if scale is None and operator in SPREADS:
            return
        assert result[finite].isfinite().all(), f"{name} has no number where the reference's has one"
        result, same, exact = result[finite], same[finite], exact[finite]
        if result.numel() == 0 or scale is None:
            return
        torchs = float((same.double() - exact).abs().max())
        measured = float((result.double() - exact).abs().max())
        allowed = 8 * torchs + GROSS * torch.finfo(result.dtype).eps * scale
        assert measured <= allowed, f"{name}: error {measured:.3e}, allowed {allowed:.3e}, torch's {torchs:.3e}"
        if finite.all() and result.dtype != torch.float64:
            comparison = self.comparisons[operator, str(result.dtype), name]
            comparison.add(result.double() / scale, same.double() / scale, exact / scale)

    def check(self) -> None:
        """The error rule, over all results."""
        for names, comparison in self.comparisons.items():
            gradient = names[-1].startswith("d ")
            comparison.check(" ".join(names), GRADIENTS if gradient else VALUES, ["root_mean_square"])


def run(target: Target, call: Call, backend: str | None, gradients: bool) -> dict[str, Tensor]:
    """The outputs by number, and the gradients of all that is differentiable by "d " + name."""
    if backend is not None:
        call = call | {"backend": backend}
    call = map_tensors(call, lambda tensor: tensor.detach().requires_grad_(gradients))
    leaves = floating_tensors(call)
    result = target.function(**call)
    outputs = result if isinstance(result, tuple) else (result,)
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    recorded = [output for output in outputs if output.requires_grad]
    if recorded:
        weights = [torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype) for output in recorded]
        grads = torch.autograd.grad(recorded, list(leaves.values()), weights, allow_unused=True, materialize_grads=True)
        found |= {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return found


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def as_double(tensor: Tensor) -> Tensor:
    """The same numbers in float64, expanded where they were."""
    return collapsed(tensor).double().expand(tensor.shape)


def collapsed(tensor: Tensor) -> Tensor:
    """One of what is repeated by ``expand``: an axis may be huge."""
    if 0 in tensor.shape:
        return tensor
    repeated = [stride == 0 for stride in tensor.stride()]
    return tensor[tuple(slice(0, 1) if one else slice(None) for one in repeated)]


def is_readable(tensor: Any) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta


def check_words(target: Target, words: str) -> None:
    """A refusal names the operator first, and an argument of it."""
    named = words.startswith((f"{target.name}: ", f"{target.name}() "))  # the second form is Python's own
    assert named, f"a refusal without the operator's name: {words}"
    rest = words[len(target.name) :]
    assert any(name in rest for name in target.parameters), f"a refusal that names no argument: {words}"
