"""Weights of other models: LLaVA-NeXT in every layout its files ever had, and LLaVA-OneVision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from python_tests.models import _llava_vr as tiny
from python_tests.models._other_models import UNCOMPRESSED, VR, inputs_of, llava_next, logits, towers, write
from vr_kernels.compression.projectors import PROJECTORS
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRModel


def tower_with_a_level_more(name: str) -> str:
    """As towers were named until transformers 5: below ``vision_model``."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def hub_layout(name: str) -> str:
    """llava-hf's files: each part at the top, the language model with its head."""
    name = tower_with_a_level_more(name).removeprefix("model.")
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.replace("language_model.", "language_model.model.", 1)


def authors_layout(name: str) -> str:
    """A language model that holds the rest."""
    name = tower_with_a_level_more(name).replace("model.vision_tower.", "model.vision_tower.vision_tower.", 1)
    name = name.replace("model.language_model.", "model.", 1)
    for i, place in ((1, 0), (2, 2)):
        name = name.replace(f"multi_modal_projector.linear_{i}", f"mm_projector.{place}")
    return name


LAYOUTS: dict[str, Callable[[str], str]] = {
    "today": str, "transformers 4.52": tower_with_a_level_more, "llava-hf": hub_layout, "authors": authors_layout,
}  # fmt: skip


@towers
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_llava_next_loads(layout: str, tower: str, tmp_path: Path) -> None:
    host = llava_next(tower)
    tensors = {LAYOUTS[layout](name): tensor for name, tensor in host.state_dict().items()}
    write(tmp_path, host.config.to_dict(), tensors)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **UNCOMPRESSED, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = inputs_of(model.config)
    assert torch.equal(logits(model, inputs), logits(host, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_came_from_an_older_layout_is_saved_under_todays_names(layout: str, tmp_path: Path) -> None:
    host = llava_next()
    write(tmp_path, host.config.to_dict(), {LAYOUTS[layout](n): t for n, t in host.state_dict().items()})
    model = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR)
    model.save_pretrained(tmp_path / "again")
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_authors_files_load_with_a_config_of_ours(tmp_path: Path) -> None:
    """Their own config is the language model's, with the tower as a name."""
    host = llava_next()
    flat = host.config.text_config.to_dict() | {"model_type": "llava_llama", "mm_vision_tower": "some/tower"}
    write(tmp_path, flat, {authors_layout(name): tensor for name, tensor in host.state_dict().items()})
    config = LlavaVRConfig.from_llava_next(host.config, **UNCOMPRESSED)
    model = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, config=config)
    inputs = inputs_of(config)
    assert torch.equal(logits(model, inputs), logits(host, inputs))


def test_the_layouts_differ() -> None:
    names = llava_next().state_dict()
    assert len({frozenset(map(layout, names)) for layout in LAYOUTS.values()}) == len(LAYOUTS)


def test_the_base_model_loads_from_llava_next(tmp_path: Path) -> None:
    host = llava_next()
    write(tmp_path, host.config.to_dict(), {hub_layout(name): tensor for name, tensor in host.state_dict().items()})
    base, info = LlavaVRModel.from_pretrained(tmp_path, **UNCOMPRESSED, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(base.image_newline, host.model.image_newline)


def test_blocks_that_llava_next_lacks_are_new_and_named(tmp_path: Path) -> None:
    host = llava_next()
    host.save_pretrained(tmp_path)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, output_loading_info=True)
    finally:
        logger.removeHandler(handler)
    assert info["missing_keys"] == {name for name in model.state_dict() if ".vision_remember." in name}
    assert any("vision_remember" in line and "MISSING" in line for line in lines)
    plain = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, vr_layers=[])
    inputs = inputs_of(model.config)
    assert torch.equal(logits(model, inputs), logits(plain, inputs))


@pytest.mark.parametrize("projector", PROJECTORS)
def test_of_another_projector_what_fits_is_taken_and_the_rest_is_new(projector: str, tmp_path: Path) -> None:
    host = llava_next()
    host.save_pretrained(tmp_path)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(
        tmp_path,
        **VR,
        vr_layers=[],
        projector_type=projector,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    assert all("projector" in name for name in new)
    assert bool(new) == (projector not in ("mlp", "pool"))
    fresh = model.config.projector().state_dict()
    for name, tensor in model.model.multi_modal_projector.state_dict().items():
        whole = f"model.multi_modal_projector.{name}"
        if whole in new:  # of the size that a new one has, whatever was in memory
            assert tensor.isfinite().all()
            assert tensor.abs().max() <= 2 * fresh[name].abs().max() + 1e-6, name
            assert tensor.count_nonzero() > 0 or fresh[name].count_nonzero() == 0, name
        else:
            assert torch.equal(tensor, host.state_dict()[whole])


def test_a_projector_of_another_shape_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    llava_next().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, projector_type="concat")


def test_llava_onevision_gives_its_weights(tmp_path: Path) -> None:
    own = tiny.config("siglip")
    config = LlavaOnevisionConfig(
        vision_config=own.vision_config, text_config=own.text_config, image_token_index=tiny.IMAGE,
        video_token_index=4, image_grid_pinpoints=tiny.PINPOINTS,
    )  # fmt: skip
    host = tiny.randomise(LlavaOnevisionForConditionalGeneration(config)).eval()
    host.save_pretrained(tmp_path)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if ".vision_remember." in name}
    assert not info["unexpected_keys"]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in host.state_dict().items())
    assert model.config.vision_feature_layer == config.vision_feature_layer
    assert not hasattr(model.config, "vision_aspect_ratio")  # features are never interpolated here
    inputs = inputs_of(model.config)
    assert logits(model, inputs).isfinite().all()


def test_a_config_of_llava_next_becomes_one_of_ours() -> None:
    host = llava_next().config
    config = LlavaVRConfig.from_llava_next(host, **VR)
    assert type(config) is LlavaVRConfig
    assert config.model_type == "llava_vr"
    assert config.image_grid_pinpoints == host.image_grid_pinpoints
    assert LlavaVRConfig.from_llava_next(host.to_dict(), **VR).to_dict() == config.to_dict()
    assert isinstance(AutoConfig.for_model("llava_vr", **VR | {"vr_options": {}, "vr_layers": []}), LlavaVRConfig)
