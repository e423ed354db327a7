"""``bidirectional_attention``: padded, packed and guided, held to one sequence, one head and one query at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import DTYPES, Call, map_tensors, randn
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from vr_kernels import bidirectional_attention

BOUNDS = [0, 3, 3, 4, 11]  # four packed sequences, the second empty

GUIDES: dict[str, dict[str, Any]] = {"no guide": {}, "guide": {"guide": True}, "some guides": {"guide": "some"}}
FORMS: dict[str, dict[str, Any]] = {
    "padded": {},
    "masked": {"mask": True},
    "more keys": {"keys": 9, "mask": True},
    "packed": {"packed": True},
}
guides = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
backends = pytest.mark.parametrize("backend", ["sdpa", "reference"])


def attention_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
    keys: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    guide: bool | str = False,
    mask: bool = False,
) -> Call:
    """The second of three padded sequences lacks all keys where keys are masked, and its guide where guides are."""
    g = torch.Generator().manual_seed(seed)
    rows = (BOUNDS[-1],) if packed else (3, 6)
    key_rows = rows if packed else (3, keys)
    sequences = len(BOUNDS) - 1 if packed else 3
    call: Call = {"query": randn(g, *rows, heads, width, dtype=dtype, scale=2.0)}
    call |= {name: randn(g, *key_rows, kv_heads, width, dtype=dtype) for name in ("key", "value")}
    if packed:
        call["cu_seqlens"] = torch.tensor(BOUNDS, dtype=torch.int32)
    if guide:
        call |= {f"guide_{name}": randn(g, sequences, kv_heads, width, dtype=dtype) for name in ("key", "value")}
    if guide == "some":
        call["guide_mask"] = torch.tensor([True, False, True, True][:sequences])
    if mask:
        call["key_mask"] = torch.rand(key_rows, generator=g) < 0.6
        call["key_mask"][1] = False
        call["key_mask"][0, 0] = True
    return call


def oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_value: Tensor | None = None,
    guide_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    if cu_seqlens is not None:
        spans = [slice(*pair) for pair in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
        sequences = [(query[span], key[span], value[span]) for span in spans]
    else:
        sequences = list(zip(query, key, value, strict=True))
    outputs = []
    for s, (q, k, v) in enumerate(sequences):
        if key_mask is not None:
            k, v = k[key_mask[s]], v[key_mask[s]]
        if guide_key is not None and guide_value is not None and (guide_mask is None or guide_mask[s]):
            k, v = torch.cat([k, guide_key[s : s + 1]]), torch.cat([v, guide_value[s : s + 1]])
        group = q.shape[1] // k.shape[1]
        heads = []
        for h in range(q.shape[1]):
            kh, vh = k[:, h // group], v[:, h // group]
            weights = (q[:, h] @ kh.T / q.shape[-1] ** 0.5).softmax(-1)
            heads.append(weights @ vh if len(kh) else torch.zeros_like(q[:, h]))
        outputs.append(torch.stack(heads, 1))
    return torch.cat(outputs) if cu_seqlens is not None else torch.stack(outputs)


def exactly(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.double())


@backends
@forms
@guides
def test_it_is_the_oracle_in_float64(form: dict[str, Any], guide: dict[str, Any], backend: str) -> None:
    call = exactly(attention_call(**form, **guide))
    cotangents = random_cotangents(oracle, call)
    expected = evaluate(oracle, call, cotangents)
    results = evaluate(lambda **c: bidirectional_attention(**c, backend=backend), call, cotangents)
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@forms
@guides
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_obeys_the_error_rule(form: dict[str, Any], guide: dict[str, Any], dtype: torch.dtype) -> None:
    assert_obeys_the_error_rule(
        bidirectional_attention,
        lambda **call: bidirectional_attention(**call, backend="reference"),
        oracle,
        lambda seed: attention_call(seed, dtype=dtype, **form, **guide),
        norms=["root_mean_square"],
    )


@backends
@guides
def test_a_query_without_any_key_gives_zeros_and_no_gradient(guide: dict[str, Any], backend: str) -> None:
    call = attention_call(mask=True, **guide)
    function = lambda **c: bidirectional_attention(**c, backend=backend)  # noqa: E731
    result = evaluate(function, call, random_cotangents(function, call))
    assert all(tensor.isfinite().all() for tensor in result.values())
    if guide.get("guide") is not True:
        assert not result["output 0"][1].any()
        assert not result["d query"][1].any()


@backends
@forms
def test_what_absent_keys_hold_does_not_matter(form: dict[str, Any], backend: str) -> None:
    call = attention_call(**form, guide="some")
    function = lambda **c: bidirectional_attention(**c, backend=backend)  # noqa: E731
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    for name in ("guide_key", "guide_value"):
        call[name][~call["guide_mask"]] = torch.nan
    if "key_mask" in call:
        for name in ("key", "value"):
            call[name][~call["key_mask"]] = torch.nan
    for name, result in evaluate(function, call, cotangents).items():
        assert torch.equal(result, expected[name]), name


def test_packed_sequences_are_what_each_is_alone() -> None:
    call = attention_call(packed=True, guide=True)
    out = bidirectional_attention(**call)
    for s, (start, stop) in enumerate(itertools.pairwise(BOUNDS)):
        one = {name: call[name][None, start:stop] for name in ("query", "key", "value")}
        one |= {name: call[name][s : s + 1] for name in ("guide_key", "guide_value")}
        assert torch.equal(out[start:stop], bidirectional_attention(**one)[0])


def test_a_guide_in_the_same_buffer_is_the_guide() -> None:
    call = attention_call(guide=True)
    joined = {n: torch.cat([call[n], call[f"guide_{n}"][:, None]], 1) for n in ("key", "value")}
    assert torch.equal(bidirectional_attention(**call), bidirectional_attention(call["query"], **joined))


@forms
@guides
def test_compiled_it_is_the_same_for_all_shapes(form: dict[str, Any], guide: dict[str, Any]) -> None:
    # Traced code cannot look at cu_seqlens and masks: packed sequences then become blocks of one.
    call = exactly(attention_call(**form, **guide))
    torch.compiler.reset()
    compiled = torch.compile(bidirectional_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    cotangents = random_cotangents(oracle, call)
    expected = evaluate(oracle, call, cotangents)
    for name, result in evaluate(compiled, call, cotangents).items():
        torch.testing.assert_close(result, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_rows_outside_all_sequences_give_zeros_where_bounds_cannot_be_looked_at() -> None:
    call = attention_call(packed=True, guide=True)
    call["cu_seqlens"] = torch.tensor([2, 3, 3, 4, 9])
    torch.compiler.reset()
    out = torch.compile(bidirectional_attention, fullgraph=True, backend="aot_eager")(**call)
    assert not out[:2].any()
    assert not out[9:].any()
    assert out[2:9].any(-1).all()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of its own attention
@backends
def test_vmap_is_a_loop(backend: str) -> None:
    calls = [attention_call(seed, mask=True, guide="some") for seed in (1, 2, 3)]
    for name in calls[0]:
        batched = torch.stack([call[name] for call in calls])
        run = lambda value, name=name: bidirectional_attention(**(calls[0] | {name: value}), backend=backend)  # noqa: E731
        for result, call in zip(torch.vmap(run)(batched), calls, strict=True):
            expected = bidirectional_attention(**(calls[0] | {name: call[name]}), backend=backend)
            torch.testing.assert_close(result, expected, msg=name)


def test_autocast_is_the_explicit_cast() -> None:
    call = attention_call(guide="some", mask=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = bidirectional_attention(**call)
    assert torch.equal(out, bidirectional_attention(**map_tensors(call, Tensor.bfloat16)))


def test_the_reference_is_differentiable_twice() -> None:
    call = exactly(attention_call(guide="some", mask=True, heads=2, kv_heads=1, width=2))
    query = call.pop("query")[:, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda q: bidirectional_attention(q, **call, backend="reference"), query)
    assert torch.autograd.gradgradcheck(lambda q: bidirectional_attention(q, **call, backend="reference"), query)


@pytest.mark.parametrize("shape", [((0, 5), (0, 4)), ((2, 0), (2, 4)), ((2, 5), (2, 0)), ((1, 1), (1, 1))], ids=str)
@backends
def test_empty_and_single_sequences(shape: tuple[tuple[int, int], tuple[int, int]], backend: str) -> None:
    query, key = (torch.randn(*rows, 2, 4, requires_grad=True) for rows in shape)
    out = bidirectional_attention(query, key, key, backend=backend)
    assert out.shape == query.shape
    out.sum().backward()
    assert query.grad is not None
    if key.numel() == 0:
        assert not out.any()


def test_a_mask_that_masks_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(query: Tensor, key: Tensor, value: Tensor, present: Tensor | None, scale: float) -> Tensor:
        seen.append((present, key.data_ptr()))
        return query

    from vr_kernels.ops import bidirectional_attention as room

    monkeypatch.setitem(room.__globals__["ATTEND"], "sdpa", record)
    call = attention_call()
    bidirectional_attention(**call, key_mask=torch.ones(3, 6, dtype=torch.bool))
    assert seen == [(None, call["key"].data_ptr())], "no mask, and the keys as they are"


def test_nothing_is_computed_by_explain() -> None:
    with FakeTensorMode() as mode:
        call = map_tensors(attention_call(), mode.from_tensor)
        explanation = vr_kernels.explain(bidirectional_attention, **call)
    assert explanation.chosen == "sdpa"
    assert explanation.reasons["reference"] == "by name only: the definition"


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 0]], ids=str)
@backends
def test_sequences_without_a_token_give_every_input_a_gradient(bounds: list[int], backend: str) -> None:
    guides = [torch.randn(len(bounds) - 1, 2, 4, requires_grad=True) for _ in range(2)]
    tokens = [torch.randn(0, 2, 4, requires_grad=True) for _ in range(3)]
    bounds_tensor = torch.tensor(bounds, dtype=torch.int32)
    out = bidirectional_attention(
        *tokens, guide_key=guides[0], guide_value=guides[1], cu_seqlens=bounds_tensor, backend=backend
    )
    out.sum().backward()
    assert out.shape == (0, 2, 4)
    assert all(given.grad is not None and not given.grad.any() for given in (*tokens, *guides))
