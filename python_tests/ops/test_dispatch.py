"""Which backend runs: the first that can and pays, or the one asked for, which runs or raises."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import cross_attention_call, leading_argument, map_tensors
from python_tests._operators import SUBJECTS, Subject, over_operators
from vr_kernels.ops import _native
from vr_kernels.ops._arguments import remember
from vr_kernels.ops._dispatch import Backend, Operator, Request, operators


def test_the_native_module_is_there() -> None:
    # Not a skip: without it every test of the "cpu" backend would vanish from the suite.
    module = importlib.import_module("vr_kernels._C")
    assert module.cpu_features()["available"][0] == "baseline"


@pytest.fixture
def without_native_module(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = "vr_kernels._C cannot be imported (broken)"
    monkeypatch.setattr(_native, "_import", lambda: (None, reason))
    for subject in SUBJECTS:  # plans are remembered by signature, and this machine is not the one they were made on
        package = importlib.import_module(subject.function.__module__)
        monkeypatch.setattr(package, "_plan", package._plan.__wrapped__)
    return reason


def assert_same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


@over_operators
def test_explain_gives_one_reason_for_each_backend(subject: Subject) -> None:
    call = subject.call()
    explanation = vr_kernels.explain(subject.function, **call)
    operator = next(operator for operator in operators() if operator.name == subject.name)
    assert list(explanation.reasons) == [backend.name for backend in operator.backends]
    assert explanation.chosen == subject.chosen
    assert explanation.reasons[subject.chosen] == "chosen"
    assert all(explanation.reasons.values())
    for name, reason in explanation.reasons.items():
        assert f"{name} " in str(explanation)
        assert reason in str(explanation)


@over_operators
def test_explain_says_what_runs_when_a_backend_is_asked_for(subject: Subject) -> None:
    explanation = vr_kernels.explain(subject.function, **subject.call(), backend="reference")
    assert explanation.chosen == "reference"
    assert explanation.reasons["reference"] == "chosen"


@over_operators
def test_explain_says_why_a_backend_cannot_run(subject: Subject) -> None:
    explanation = vr_kernels.explain(subject.function, **subject.call(dtype=torch.float64))
    assert explanation.chosen != "cpu"
    assert "float64" in explanation.reasons["cpu"]


def test_explain_refuses_what_is_no_operator() -> None:
    with pytest.raises(ValueError, match=r"explain: .*add.* is not an operator .* local_attention"):
        vr_kernels.explain(torch.add, torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"explain: a Linear is not an operator .* VR_KERNELS_LOG=1 shows"):
        vr_kernels.explain(torch.nn.Linear(1, 1), torch.ones(1))


@over_operators
def test_explain_raises_where_the_call_itself_would(subject: Subject) -> None:
    call = subject.call()
    name = leading_argument(call)
    call[name] = call[name].to(torch.int32)
    with pytest.raises(TypeError, match=f"{name} is torch.int32"):
        vr_kernels.explain(subject.function, **call)


@over_operators
def test_explain_computes_nothing(subject: Subject) -> None:
    with FakeTensorMode() as mode:  # nothing can be computed with these
        call = map_tensors(subject.call(), mode.from_tensor)
        assert vr_kernels.explain(subject.function, **call).chosen == subject.chosen


@pytest.mark.usefixtures("without_native_module")
@over_operators
def test_a_backend_asked_for_by_name_never_falls_back(subject: Subject) -> None:
    with pytest.raises(ValueError, match=rf"{subject.name}: backend='cpu' cannot run .*broken.*reference: "):
        subject.run("cpu")(**subject.call())


@over_operators
def test_without_the_native_module_another_backend_is_chosen(subject: Subject, without_native_module: str) -> None:
    call = subject.call()
    explanation = vr_kernels.explain(subject.function, **call)
    assert explanation.chosen != "cpu"
    assert without_native_module in explanation.reasons["cpu"]
    assert_same(subject.run(None)(**call), subject.run(explanation.chosen)(**call))


@over_operators
def test_the_choice_is_what_runs(subject: Subject) -> None:
    call = subject.call()
    chosen = vr_kernels.explain(subject.function, **call).chosen
    assert_same(subject.run(None)(**call), subject.run(chosen)(**call))


def test_attention_received_takes_the_cpu_pass_where_it_wins() -> None:
    def chosen(tokens: int) -> str:
        query = torch.empty(1, tokens, 1, 8)
        return vr_kernels.explain(vr_kernels.attention_received, query, query).chosen

    assert [chosen(tokens) for tokens in (729, 1023, 1024, 4096)] == ["blocked", "blocked", "cpu", "cpu"]


def test_absorption_is_chosen_where_it_is_less_work() -> None:
    few_rows = cross_attention_call(indexed=True, windows=(4, 4), window=(1, 1))
    few_rows["features"] = [level[:5] for level in few_rows["features"]]
    few_rows["window_index"] = few_rows["window_index"].clamp(max=4)
    explanation = vr_kernels.explain(vr_kernels.local_cross_attention, **few_rows)
    assert explanation.chosen == "unabsorbed"
    assert "5 feature rows for 32 queries" in explanation.reasons["cpu"]
    many_rows = cross_attention_call(window=(2, 2))
    assert vr_kernels.explain(vr_kernels.local_cross_attention, **many_rows).chosen == "cpu"


def operator(*backends: Backend) -> Operator:
    return Operator("op", backends, lambda: REQUEST, lambda device, dtype: REQUEST)


REQUEST = Request("cpu", torch.float32)
ABLE = Backend("able")
UNABLE = Backend("unable", refuses=lambda request: "no such chip")
UNMEASURED = Backend("unmeasured", passed_over=lambda request: "never measured")


def test_the_first_able_and_measured_backend_is_chosen() -> None:
    assert operator(UNABLE, UNMEASURED, ABLE, Backend("later")).select(REQUEST, None) == "able"


def test_a_backend_by_name_only_runs_by_name_and_is_never_chosen() -> None:
    subject = operator(UNMEASURED)
    assert subject.select(REQUEST, "unmeasured") == "unmeasured"
    with pytest.raises(ValueError, match=r"(?s)op: no backend can run this call.*by name only: never measured"):
        subject.select(REQUEST, None)


def test_an_unable_backend_raises_with_a_reason_for_each() -> None:
    with pytest.raises(ValueError, match=r"backend='unable' cannot run this call: no such chip.*able: can run"):
        operator(UNABLE, ABLE).select(REQUEST, "unable")


def test_backends_that_are_baselines_are_never_chosen() -> None:
    for subject in SUBJECTS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            chosen = vr_kernels.explain(subject.function, **subject.call(dtype=dtype)).chosen
            assert chosen not in ("absorbed", "triton", "triton_fused", "cuda", "cuda_fused")


def test_checks_of_a_signature_seen_before_are_not_repeated() -> None:
    seen = []

    @remember
    def check(shape: tuple[int, ...]) -> int:
        seen.append(shape)
        return len(shape)

    assert [check((1, 2)), check((1, 2)), check((3,))] == [2, 2, 1]
    assert seen == [(1, 2), (3,)]


def test_a_number_of_another_type_is_another_signature() -> None:
    scores = torch.zeros(2, 9)
    vr_kernels.select_dominant_tokens(scores, 1)
    for count in (True, 1.0):
        with pytest.raises(TypeError, match=f"select_dominant_tokens: count is {count}; it must be an int"):
            vr_kernels.select_dominant_tokens(scores, count)  # type: ignore[arg-type]


@over_operators
def test_explain_sees_what_autocast_makes_of_a_call(subject: Subject) -> None:
    """Dtypes that only autocast makes one, as in a module whose query comes from a Linear."""
    call = subject.call()
    others = {name: call[name] for name in subject.autocast & call.keys() if name != leading_argument(call)}
    call |= map_tensors(others, lambda tensor: tensor.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        chosen = vr_kernels.explain(subject.function, **call).chosen
        assert_same(subject.run(None)(**call), subject.run(chosen)(**call))


def test_explain_refuses_an_argument_that_the_call_does_not_take() -> None:
    with pytest.raises(TypeError, match="windowindex"):
        vr_kernels.explain(vr_kernels.local_attention, torch.ones(2, 1, 4), torch.ones(3, 1, 4), windowindex=None)
