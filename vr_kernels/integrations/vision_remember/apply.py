"""``apply_vision_remember``: blocks between the decoder layers of an unmodified model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from vr_kernels.integrations._holder import find_holder
from vr_kernels.integrations.pruning_rules import STATE as PRUNING
from vr_kernels.integrations.pruning_rules import check_blocks
from vr_kernels.integrations.vision_remember.context import NAME
from vr_kernels.integrations.vision_remember.families import FAMILIES
from vr_kernels.integrations.vision_remember.hooks import check_layers, insert_blocks, remove_blocks, remove_hooks
from vr_kernels.integrations.vision_remember.patch import (
    PATCH,
    GetImageFeatures,
    Method,
    Patch,
    PrepareInputsForGeneration,
    add_context,
    family_of,
    mark_prompt,
)
from vr_kernels.nn import VisionRemember, VisionRememberConfig
from vr_kernels.ops import local_attention, local_cross_attention
from vr_kernels.ops._dispatch import functions

M = TypeVar("M", bound=nn.Module)

# Fields of VisionRememberConfig that the model, or an argument of its own, says.
TAKEN = ("hidden_size", "num_attention_heads", "feature_dims", "layers", "norm_eps")

# Where in the encoder the levels of Vision Remember v2 lie: 7, 15 and 23 of 24 blocks.
DEPTHS = (7 / 24, 15 / 24, 23 / 24)


def apply_vision_remember(
    model: M,
    layers: Sequence[int] = (1, 4),
    *,
    levels: Sequence[int] | None = None,
    position: str = "after",
    bidirectional: bool = True,
    neighborhood: tuple[int, int] = (0, 0),
    backend: str | None = None,
    **config: Any,
) -> M:
    """Put ``VisionRemember`` blocks into the decoder of a Hugging Face model (Vision Remember, v1 and v2).

    Works in place, on models of the types "internvl", "llava", "llava_next", "llava_onevision", "qwen2_5_vl",
    "qwen2_vl" and "qwen3_vl", also inside a PEFT model. No key of the model's state dict changes, new ones are
    ``...layers.<i>.vision_remember.*``. The blocks start as the identity: until they are trained the model's outputs
    are those of before, bit for bit (unless ``residual="normal"`` is asked for). ``generate()``, gradient
    checkpointing, ``copy.deepcopy`` and pickling work as before, and ``model.model.language_model`` can be compiled in
    one graph. A block takes its layer's device and dtype.

    A vision token reads the features that the model made it of: in LLaVA's its one patch, in Qwen-VL's and InternVL's
    its 2x2. ``neighborhood`` adds those of the tokens around it; with a window of one feature attention has nothing to
    choose from, and the block adds a projection of that feature.

    Text guidance reads the prompt alone. In training that is what stands before the first label; to score answers
    without labels, give the model ``prompt_mask`` (B, T), True at the prompt. Training with neither warns.

    Refused when they come: videos, prefill in parts (``prefill_chunk_size``), images on top of a cache, several samples
    packed in one row, and grids of LLaVA-OneVision that its processing interpolates.

    Args:
        model: the model, or one that holds it.
        layers: decoder layers, counted from 1, that get a block.
        levels: which of the encoder's ``hidden_states`` the blocks read (0 the embeddings, k the output of block k,
            negative ones counted from the end). None: 7, 15 and 23 of an encoder of 24 blocks, in proportion for
            others.
        position: "after" those layers (v2, §3.1) or "before" them (v1, §5.1).
        bidirectional: whether a block has its second layer, in which vision tokens read each other and the prompt.
        neighborhood: (r_h, r_w), a token's window reaches as many tokens of its grid (of a tile where there are tiles)
            up and down, left and right.
        backend: of the windowed attention, as ``LocalCrossAttention`` takes it.
        config: any other field of ``VisionRememberConfig``. ``interaction`` is "local"; ``saliency`` needs a CLIP or
            SigLIP tower.

    Returns:
        The model itself.

    Raises:
        ValueError: another type of model; a model that has blocks already, whose encoding was replaced
            (``apply_visionzip``), or that drops tokens below a block (``apply_pruning``); layers, levels, fields or a
            backend that do not fit. TypeError: layers, levels or neighborhood that are no sequences; a model that is no
            module. The model is then as it was.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
    ...                           image_size=16, patch_size=8)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    ...                    vocab_size=99)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=98))
    >>> prompt, image = torch.tensor([[5] + 4 * [98] + [7]]), torch.randn(1, 3, 16, 16)
    >>> before = model.eval()(input_ids=prompt, pixel_values=image).logits
    >>> model = apply_vision_remember(model, layers=(1,), levels=(2, 3), neighborhood=(1, 1), num_heads=4)
    >>> torch.equal(model(input_ids=prompt, pixel_values=image).logits, before)  # not trained yet
    True
    """
    inner = find_inner("apply_vision_remember", model)
    patch = plan(
        inner,
        layers,
        levels=levels,
        position=position,
        bidirectional=bidirectional,
        neighborhood=neighborhood,
        **config,
    )
    install(model, patch, backend=backend)
    return model


def plan(
    inner: Any,
    layers: Sequence[int],
    *,
    levels: Sequence[int] | None,
    position: str,
    bidirectional: bool,
    neighborhood: tuple[int, int],
    **config: Any,
) -> Patch:
    """The choices, checked against the model."""
    for name, value in (("layers", layers), ("levels", levels), ("neighborhood", neighborhood)):
        if not isinstance(value, (tuple, list)) and not (name == "levels" and value is None):
            raise TypeError(f"apply_vision_remember: {name} is {value!r}; it must be a tuple or a list of int")
    if not layers:
        _refuse("layers is empty; it must name at least one decoder layer")
    check_layers("apply_vision_remember", tuple(layers), len(inner.language_model.layers), position)
    resolved = _levels(levels, len(family_of(inner).blocks(inner)))
    reach = all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in neighborhood)
    if len(neighborhood) != 2 or not reach:
        _refuse(f"neighborhood is {neighborhood!r}; it must be two integers (r_h, r_w) of at least 0")
    around = (neighborhood[0], neighborhood[1])
    return Patch(
        tuple(layers), resolved, position, around, _config(inner, bidirectional, len(resolved), around, config)
    )


def install(model: nn.Module, patch: Patch, *, backend: str | None = None) -> None:
    """Make the blocks, and change the model; all that can be refused is refused before."""
    inner = find_inner("apply_vision_remember", model)
    outer = _around(model, inner)
    if hasattr(inner, PATCH):
        _refuse("the model has blocks already; remove_vision_remember(model) first")
    for holder, method in ((inner, GetImageFeatures), (outer, PrepareInputsForGeneration)):
        if holder is not None and method.name in vars(holder):
            _refuse(
                f"the model's {method.name} was replaced, as apply_visionzip does; undo that first, for the blocks "
                "must know what each token is made of"
            )
    attention = local_attention if patch.config.literal else local_cross_attention
    functions()[attention].check_name("apply_vision_remember", backend)
    pruning = vars(inner.language_model).get(PRUNING)
    if pruning is not None:
        check_blocks("apply_vision_remember", pruning.rule, patch.layers)
    decoder = inner.language_model.layers
    blocks: dict[int, nn.Module] = {}
    for number in patch.layers:
        like = _like(decoder[number - 1])
        block = VisionRemember(patch.config, backend=backend, device=like.device, dtype=like.dtype)
        blocks[number] = block.train(decoder[number - 1].training)
    insert_blocks(decoder, blocks, position=patch.position)
    setattr(inner, PATCH, patch)
    setattr(inner, GetImageFeatures.name, GetImageFeatures(inner))
    inner.register_forward_pre_hook(add_context, with_kwargs=True)
    if outer is not None:
        setattr(outer, PrepareInputsForGeneration.name, PrepareInputsForGeneration(outer))
        outer.register_forward_pre_hook(mark_prompt, with_kwargs=True)


def remove_vision_remember(model: M) -> M:
    """Undo ``apply_vision_remember``, blocks and their weights included; a model without stays as it is.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> keys = list(model.state_dict())
    >>> model = remove_vision_remember(apply_vision_remember(model, layers=(1,), num_heads=4))
    >>> list(model.state_dict()) == keys
    True
    """
    inner = find_inner("remove_vision_remember", model)
    outer = _around(model, inner)
    if not hasattr(inner, PATCH):
        # The inner model may have been freed alone, without the one around it; what others put there is not ours.
        if outer is not None and isinstance(vars(outer).get(PrepareInputsForGeneration.name), Method):
            delattr(outer, PrepareInputsForGeneration.name)
            remove_hooks(outer, mark_prompt)
        return model
    remove_blocks(inner.language_model.layers)
    for holder, method, hook in (
        (inner, GetImageFeatures, add_context),
        (outer, PrepareInputsForGeneration, mark_prompt),
    ):
        if holder is not None:
            vars(holder).pop(method.name, None)
            remove_hooks(holder, hook)
    delattr(inner, PATCH)
    return model


def peft_modules_to_save(model: nn.Module) -> list[str]:
    """The names of the blocks, for ``modules_to_save`` of a PEFT config: trained and saved whole beside the adapter.

    Raises:
        ValueError: another type of model, or one without blocks.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> peft_modules_to_save(apply_vision_remember(model, layers=(1, 2), num_heads=4))
    ['model.language_model.layers.0.vision_remember', 'model.language_model.layers.1.vision_remember']
    """
    patched(find_inner("peft_modules_to_save", model), "peft_modules_to_save")
    return [name for name, _ in model.named_modules() if name.endswith(f".{NAME}")]


def patched(inner: Any, operation: str) -> Patch:
    """The choices that a model was patched with, or an error that it was not."""
    patch: Patch | None = getattr(inner, PATCH, None)
    if patch is None:
        raise ValueError(f"{operation}: the model has no blocks; apply_vision_remember(model) gives it some")
    return patch


def find_inner(operation: str, model: nn.Module) -> Any:
    """The model, in it, that holds the encoder and the decoder."""
    return find_holder(operation, model, "language_model", FAMILIES)


def _around(model: nn.Module, inner: nn.Module) -> Any | None:
    """The model with the head, if there is one."""
    return next((module for module in model.modules() if module._modules.get("model") is inner), None)


def _levels(levels: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if levels is None:
        return tuple(sorted({max(1, round(part * depth)) for part in DEPTHS}))
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int) or not -depth - 1 <= level <= depth:
            _refuse(f"levels has {level!r}; an encoder of {depth} blocks has hidden_states 0 to {depth}")
    resolved = tuple(level % (depth + 1) for level in levels)
    if not resolved or len(set(resolved)) != len(resolved):
        _refuse(f"levels is {tuple(levels)}; it must name at least one of hidden_states, and none twice")
    return resolved


def _config(
    inner: Any, bidirectional: bool, levels: int, neighborhood: tuple[int, int], given: dict[str, Any]
) -> VisionRememberConfig:
    for name in TAKEN:
        if name in given:
            _refuse(f"{name} is given; it follows from the model and from this function's own arguments")
    family, text = family_of(inner), inner.config.get_text_config()
    s_h, s_w = family.window(inner)
    options: dict[str, Any] = {
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "feature_dims": (family.width(inner),) * levels,
        "layers": ("cross_attention", "bidirectional") if bidirectional else ("cross_attention",),
        "window": (s_h * (2 * neighborhood[0] + 1), s_w * (2 * neighborhood[1] + 1)),
        "text_guide": "max" if bidirectional else "none",
        "norm_eps": getattr(text, "rms_norm_eps", 1e-6),
    }
    config = VisionRememberConfig.from_dict(options | given)
    if config.interaction != "local":
        _refuse(f"interaction is {config.interaction!r}; it must be 'local', for other models' tokens have no one grid")
    if config.saliency != "none" and family.saliency(inner) is None:
        _refuse(f"saliency is {config.saliency!r}; it must be 'none', for this encoder is no CLIP or SigLIP tower")
    return config


def _like(layer: nn.Module) -> torch.Tensor:
    """A parameter of the layer in which it computes, which those of a quantised Linear are not."""
    computed = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return next(parameter for parameter in layer.parameters() if parameter.dtype in computed)


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"apply_vision_remember: {what}")
