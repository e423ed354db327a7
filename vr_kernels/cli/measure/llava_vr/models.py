"""The models that are compared: one encoder and one decoder, which all share, and what each has between and in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels import VisionRemember, apply_visionzip
from vr_kernels.cli.measure.llava_vr.cases import LAYERS, ModelCase
from vr_kernels.compression.projectors import PROJECTORS
from vr_kernels.integrations.pruning import apply_pruning, remove_pruning
from vr_kernels.integrations.vision_remember.hooks import insert_blocks, remove_blocks

WITH_BLOCKS = {
    "ours": "pooled, with Vision Remember",
    "folded": "the same, its adjacent linear maps merged",
    "naive": "pooled, with Vision Remember in stock PyTorch: levels joined, windows, K and V projected",
}
BASELINE, WHOLE = "pool", "mlp"
DOMINANT, CONTEXTUAL = 54, 10  # VisionZip's tokens
NAMES = (*WITH_BLOCKS, *PROJECTORS, "visionzip", "fastv")
WHAT = WITH_BLOCKS | {
    BASELINE: "pooled, without blocks",
    WHOLE: "uncompressed",
    "visionzip": f"LLaVA with VisionZip: {DOMINANT} tokens, and {CONTEXTUAL} of the merged others",
    "fastv": "uncompressed, with FastV: half of the image's tokens from the third layer on",
}


@dataclass(frozen=True)
class Subject:
    """A model, what its decoder has while it runs, and a prompt with as many image tokens as the model makes."""

    model: Any
    blocks: Mapping[int, VisionRemember]
    inputs: Mapping[str, Tensor]
    pruning: str | None = None

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    def __enter__(self) -> Subject:
        insert_blocks(self.decoder.layers, self.blocks)
        if self.pruning is not None:
            apply_pruning(self.model, self.pruning)
        return self

    def __exit__(self, *raised: object) -> None:
        remove_blocks(self.decoder.layers)
        if self.pruning is not None:
            remove_pruning(self.model)

    def double(self) -> Subject:
        """A copy in float64."""
        twin = copy.deepcopy(self)
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in twin.inputs.items()}
        blocks = {number: block.double() for number, block in twin.blocks.items()}
        return replace(twin, model=twin.model.double(), blocks=blocks, inputs=inputs)

    def parameters(self) -> int:
        with self:
            return sum(parameter.numel() for parameter in self.model.parameters())


Subjects = dict[str, Subject]


def what(name: str) -> str:
    return WHAT.get(name, f"projector {name}")


def config_of(case: ModelCase, name: str) -> Any:
    """Raises ValueError for a projector that the sizes do not allow."""
    from transformers import CLIPVisionConfig, Qwen2Config, SiglipVisionConfig

    from vr_kernels.models.llava_vr import LlavaVRConfig
    from vr_kernels.models.llava_vr.configuration_llava_vr import PRESETS

    tower = CLIPVisionConfig if case.version == "v1" else SiglipVisionConfig
    return LlavaVRConfig.preset(
        case.version,
        vision_config=tower(
            image_size=case.image, patch_size=case.patch, hidden_size=case.vision_width,
            intermediate_size=case.vision_inner, num_hidden_layers=case.vision_blocks,
            num_attention_heads=case.vision_heads,
        ),
        text_config=Qwen2Config(
            vocab_size=case.vocabulary, hidden_size=case.width, intermediate_size=case.inner,
            num_hidden_layers=case.blocks, num_attention_heads=case.query_heads, num_key_value_heads=case.key_heads,
            tie_word_embeddings=True, eos_token_id=None,
        ),
        image_token_index=case.vocabulary - 1,
        image_grid_pinpoints=case.pinpoints,
        projector_type=BASELINE if name in WITH_BLOCKS else name if name in PROJECTORS else WHOLE,
        vr_layers=LAYERS if name in WITH_BLOCKS else [],
        vr_levels=case.levels(PRESETS[case.version]["vr_levels"]),
        vr_options={"num_heads": case.heads, "residual": "normal" if case.trained else "zero"},
    )  # fmt: skip


def refusal(case: ModelCase, name: str) -> str | None:
    if name == "visionzip" and case.tiles > 1:
        return "compared on one tile"
    try:
        config_of(case, name)
    except ValueError as reason:
        return str(reason)
    return None


def make_subjects(case: ModelCase) -> Subjects:
    """Random weights, pixels and words, the same ones each time."""
    from transformers import AutoModel

    names = [name for name in NAMES if refusal(case, name) is None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        shared = config_of(case, BASELINE)
        with torch.device(case.device):  # where billions of random numbers take no minutes
            models = [AutoModel.from_config(part) for part in (shared.vision_config, shared.text_config)]
        encoder, decoder = (model.to(case.device, case.torch_dtype) for model in models)
        shape = (case.batch, *([] if case.tiles == 1 else [case.tiles]), 3, case.image, case.image)
        pixels = torch.randn(shape).to(case.device, case.torch_dtype)
        words = torch.randint(case.vocabulary - 1, (case.batch, case.text))
        subjects = {name: _subject(case, name, encoder, decoder, pixels, words) for name in names}
        for name in WITH_BLOCKS:
            subjects[name].model.model.multi_modal_projector = subjects[BASELINE].model.model.multi_modal_projector
            for number, block in subjects[name].blocks.items():
                block.load_state_dict(subjects["ours"].blocks[number].state_dict())
        for block in subjects["folded"].blocks.values():
            block.fold_()
    return subjects


def _subject(case: ModelCase, name: str, encoder: nn.Module, decoder: Any, pixels: Tensor, words: Tensor) -> Subject:
    from vr_kernels.models.llava_vr.slots import tokens_of_image

    config = config_of(case, name)
    model, projector = _zipping_frame(config) if name == "visionzip" else _frame(config)
    kind: dict[str, Any] = {"device": case.device, "dtype": case.torch_dtype}
    model.model.vision_tower, model.model.language_model = encoder, decoder
    model.model.multi_modal_projector = projector.to(**kind)
    model.lm_head.weight = decoder.embed_tokens.weight
    slots = len(tokens_of_image(case.image_size, case.pinpoints, case.image, config.token_grid, config.tokens_per_cell))
    if name == "visionzip":
        apply_visionzip(model, dominant=DOMINANT, contextual=CONTEXTUAL)
        slots = DOMINANT + CONTEXTUAL
    else:
        model.model.image_newline = nn.Parameter(torch.zeros(case.width, **kind))
    backend = "reference" if name == "naive" else None
    layers = config.vr_layers
    blocks = {number: VisionRemember(config.vision_remember, backend=backend).to(**kind) for number in layers}

    images = torch.full((case.batch, slots), config.image_token_id)
    half = case.text // 2
    ids = torch.cat([words[:, :half], images, words[:, half:]], 1)  # (B, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if case.pinpoints:
        inputs["image_sizes"] = torch.tensor([case.image_size] * case.batch)
    inputs = {argument: value.to(case.device) for argument, value in inputs.items()}
    return Subject(model.eval().requires_grad_(False), blocks, inputs, pruning="fastv" if name == "fastv" else None)


def _frame(config: Any) -> tuple[Any, nn.Module]:
    """A model on the meta device, where the shared parts would not fit in memory so many times, and its projector."""
    from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration

    with torch.device("meta"):
        model = LlavaVRForConditionalGeneration(config)
    return model, config.projector()


def _zipping_frame(config: Any) -> tuple[Any, nn.Module]:
    """LLaVA of transformers with the same parts; its projector is ``WHOLE``."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    stock = LlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_feature_layer=-2,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(stock)
    return model, LlavaMultiModalProjector(stock)
