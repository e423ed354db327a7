"""``vr-kernels bench llava_vr``: models that share all they can, and are what they say they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from python_tests.test_docs import bench_script
from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure import run
from vr_kernels.cli.measure.llava_vr import LlavaVRBench
from vr_kernels.cli.measure.llava_vr.cases import LAYERS, SHAPES, ModelCase, operations, parameters_read
from vr_kernels.cli.measure.llava_vr.models import WITH_BLOCKS, Subjects, config_of, make_subjects
from vr_kernels.cli.measure.llava_vr.parts import details_of
from vr_kernels.compression.projectors import PROJECTORS

BENCH = LlavaVRBench()
CASES = {
    "v1": replace(SHAPES["v1"].quick(), batch=2),
    "v2": replace(SHAPES["v2"].quick(), batch=2),
    "anyres": SHAPES["v2-anyres"].quick(),
}


@pytest.fixture(scope="module", params=list(CASES))
def made(request: pytest.FixtureRequest) -> tuple[ModelCase, Subjects]:
    case = CASES[request.param]
    return case, make_subjects(case)


def logits(name: str, case: ModelCase, x: Subjects) -> torch.Tensor:
    (result,) = BENCH.contender(name, case)(x)
    return result


def test_there_is_a_contender_for_every_projector_and_pruner(made: tuple[ModelCase, Subjects]) -> None:
    case, x = made
    everyone = {*WITH_BLOCKS, *PROJECTORS, "visionzip", "fastv"}
    assert {"ours", *BENCH.baselines} == everyone
    assert {name for name in everyone if BENCH.lacking(name, case) is None} == set(x)
    assert everyone - set(x) == ({"visionzip"} if case.tiles > 1 else set())


def test_pruned_models_hold_fewer_tokens_and_leave_the_decoder_as_it_was(made: tuple[ModelCase, Subjects]) -> None:
    case, x = made
    before = logits("pool", case, x)
    whole, *pruned = (details_of(x[name], case.answer, "cpu") for name in ("mlp", "fastv", "visionzip") if name in x)
    assert all(found["KV, MB"] < whole["KV, MB"] for found in pruned)
    assert torch.equal(logits("pool", case, x), before)


def test_new_blocks_leave_the_logits_as_they_are_bit_for_bit(made: tuple[ModelCase, Subjects]) -> None:
    case, x = made
    assert all(torch.equal(logits(name, case, x), logits("pool", case, x)) for name in WITH_BLOCKS)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_trained_blocks_change_the_logits_alike(version: str) -> None:
    case = SHAPES[version].small()
    x = make_subjects(case)
    ours, naive, folded = (logits(name, case, x) for name in ("ours", "naive", "folded"))
    torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded, naive, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        without = x["pool"].model(**x["pool"].inputs, logits_to_keep=1).logits
    assert (ours - without).abs().max() > 1e-2


def test_encoder_and_decoder_are_in_memory_once(made: tuple[ModelCase, Subjects]) -> None:
    _, x = made
    for part in ("vision_tower", "language_model"):
        assert len({id(getattr(subject.model.model, part)) for subject in x.values()}) == 1
    assert len({subject.model.lm_head.weight.data_ptr() for subject in x.values()}) == 1


def test_a_model_has_its_blocks_only_while_it_runs(made: tuple[ModelCase, Subjects]) -> None:
    _, x = made
    layers = x["ours"].decoder.layers
    with x["ours"]:
        assert [number for number, layer in enumerate(layers, 1) if hasattr(layer, "vision_remember")] == LAYERS
    assert not any(hasattr(layer, "vision_remember") for layer in layers)


def test_the_parts_of_the_first_token_and_what_a_model_holds(made: tuple[ModelCase, Subjects]) -> None:
    case, x = made
    ours, pool, whole = (details_of(x[name], case.answer, "cpu") for name in ("ours", "pool", "mlp"))
    assert ours["Vision Remember, ms"] > 0 == pool["Vision Remember, ms"]
    assert all(value > 0 for name, value in ours.items())
    assert whole["prompt tokens"] > ours["prompt tokens"] == pool["prompt tokens"]
    blocks = sum(parameter.numel() for block in x["ours"].blocks.values() for parameter in block.parameters())
    assert ours["parameters, M"] - pool["parameters, M"] == pytest.approx(blocks / 1e6)
    # The last token of the answer is never read.
    rows = pool["prompt tokens"] + case.answer
    assert pool["KV, MB"] * 1e6 == pytest.approx(case.batch * rows * case.blocks * 2 * case.key_width * 4)


def flops(model: torch.nn.Module, *args: torch.Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", list(CASES))
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """Without maps of eager attention torch counts none of its products."""
    from transformers import AutoModel

    case = replace(CASES[name], batch=1)
    config, found = config_of(case, "pool"), operations(case)
    config.vision_config.num_hidden_layers, config.vision_config.vision_use_head = case.deepest, False
    encoder = AutoModel.from_config(config.vision_config, attn_implementation="eager")
    assert found["vision"] == flops(encoder, torch.randn(case.tiles, 3, case.image, case.image))
    levels = torch.randn(case.tiles, case.side, case.side, case.vision_width)
    assert found["projector"] == flops(config.projector(), levels)
    decoder = AutoModel.from_config(config.text_config, attn_implementation="eager")
    tokens = case.text + case.tiles * (case.side // case.window) ** 2
    masked = 2 * tokens**2 * case.width * case.blocks
    head = 2 * case.width * case.vocabulary
    assert found["decoder"] == flops(decoder, torch.zeros(1, tokens, dtype=torch.long)) - masked + head


def test_the_papers_model_has_the_papers_size() -> None:
    """SigLIP-L without its last block and its head, and Qwen2-0.5B."""
    assert parameters_read(SHAPES["v2"]) == pytest.approx(0.29e9 + 0.49e9 + 0.09e9, rel=0.02)


def test_a_run_leaves_a_record_that_the_page_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "peak_memory", lambda *call: dict.fromkeys(("ours", "pool", "naive", "mlp"), 1))
    compared = [word for name in ("pool", "naive", "mlp") for word in ("--compare", name)]
    command = ["bench", "llava_vr", "--shape", "v2", "--quick", *compared, "--json", str(tmp_path / "record.json")]
    result = CliRunner().invoke(commands, command)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "record.json").read_text())
    (case,) = record["cases"]
    errors = {row["name"]: row["error"] for row in case["rows"]}
    assert errors == {"ours": 0, "pool": 0, "naive": 0, "mlp": None}
    assert set(case["details"]) == set(errors)
    page = "\n".join(bench_script("tables")._of_record(record))
    assert "Vision Remember, ms" in page
    assert "mlp / ours" in page
    assert not any("mlp" in loss for loss in case["losses"])


def test_a_block_that_adds_something_ends_the_run_before_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["v2"]
    x = make_subjects(case)
    with torch.no_grad():
        x["ours"].blocks[1].cross_attention.contraction.weight += 1e-6
    monkeypatch.setattr(BENCH, "inputs", lambda asked: make_subjects(asked) if asked.trained else x)
    monkeypatch.setattr(run, "paired_seconds", lambda *args: pytest.fail("timed a wrong result"))
    with pytest.raises(run.Incorrect, match="BEYOND"):
        run.run_case(BENCH, case, ["pool"], 3, lambda what: None)


def test_a_backward_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="forward alone"):
        replace(SHAPES["v2"], backward=True)
