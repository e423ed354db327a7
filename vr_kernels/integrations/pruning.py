"""``apply_pruning``: a Hugging Face model whose decoder goes on with fewer vision tokens from layer to layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from vr_kernels.integrations._decoder import Decoder
from vr_kernels.integrations.pruning_hooks import PruningHooks
from vr_kernels.integrations.pruning_rules import STATE, FastV, PyramidDrop, RandomRows, Rule, SparseVLM, check_blocks
from vr_kernels.integrations.vispruner import VisPrunerBudget
from vr_kernels.integrations.zipped_encoders import check_encoders, replace_encoders, restore_encoders
from vr_kernels.nn import VisionRemember
from vr_kernels.nn._sizes import check_module

__all__ = ["apply_pruning", "remove_pruning"]

M = TypeVar("M", bound=nn.Module)

RULES: Mapping[str, Callable[..., Rule]] = {
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "random": RandomRows,
}


def apply_pruning(model: M, method: str, processor: Any = None, **options: Any) -> M:
    """Let a Hugging Face decoder drop vision tokens while it reads a prompt, or see fewer from the start.

    Works in place, on Qwen2 and Llama decoders of transformers and on LLaVA, LLaVA-NeXT and LLaVA-OneVision around
    them, also inside a PEFT model. The decoder keeps the attention it was loaded with: scores are made of the queries
    and keys of the few rows that a method asks, for no layer a map. ``generate()`` works as before, greedy and with
    beams. The layers above a stage hold the tokens that are left, and nothing else. Each sample of a batch keeps tokens
    of its own; a sample without vision tokens is left alone.

    The output has a row for each token of the prompt, zero where it was dropped; ``hidden_states`` of the layers above
    a stage have the rows that are left, each sample's moved to the right end. A prompt's last token always stays.
    Without a cache every step is a prompt of its own, and so ranks anew, by its own last token. With ``labels`` the
    first supervised token behind the images ends the prompt: an answer that is scored has no say in what is dropped.

    Methods and their options, with the defaults of the papers:
        "fastv": layer=2, keep_ratio=0.5. The first ``layer`` layers see all; by the last one's attention from the last
            token int(n * keep_ratio) of a sample's n vision tokens go on. Positions are kept. (arXiv 2403.06764)
        "pyramiddrop": layers=(8, 16, 24), keep_ratios=(0.5, 0.25, 0.125). After ``layers[i]`` layers
            int(n * keep_ratios[i]) are left, by the next layer's attention from the last token. Positions are
            compacted. (arXiv 2410.17247)
        "sparsevlm": layers=(2, 6, 15), keep_counts=(300, 200, 110), recycled_share=0.3. Behind the layers of these
            numbers, from 0, that many are left, by that layer's attention from the relevant text tokens; a share of the
            dropped is merged into a tenth as many tokens, behind them. Positions are compacted. (arXiv 2410.04417)
        "vispruner": count=64, important_ratio=0.5. The encoder hands on that many of an image's or tile's patches, in
            raster order: a share by the CLS row's attention, the others by being unlike the rest. Prompts hold
            ``count`` placeholders for each; an AnyRes image's tiles come as ``apply_visionzip`` orders them. For
            LLaVA, LLaVA-NeXT and Video-LLaVA around a CLIP or SigLIP tower and any decoder. (arXiv 2412.01818)
        "random": layer=2, keep_ratio=0.5, seed=0. FastV's place, and chance: the baseline for all of them.

    Args:
        model: the model, or one that holds it, for inference. Applied again, the new method replaces the old one.
        method: its name.
        processor: the model's, whose placeholders must become as many as VisPruner's tokens; None for other methods,
            and where the caller's own prompts hold as many.
        options: its own, by name.

    Returns:
        The model itself. A decoder by itself takes ``vision_mask`` (B, N) bool, True at vision tokens, beside
        ``input_ids``, in calls and in ``generate()``; a model that sees finds its own.

    Raises:
        ValueError: an unknown method, another type of model, layers that the decoder does not have, ``VisionRemember``
            blocks that would miss tokens, options that no image can meet; when called, a prompt that does not come in
            one piece, a mask that does not fit, a cache of fixed length (``cache_implementation="static"``), or tokens
            that are guessed ahead (``assistant_model``, ``prompt_lookup_num_tokens``).
        TypeError: an option that the method does not have, or of another type than it may be; a processor for a method
            that drops tokens inside the decoder, or another model's.
        RuntimeError: when called, a model in training mode: the last token would be the answer's.

    >>> import torch
    >>> from transformers import Qwen2Config, Qwen2ForCausalLM
    >>> config = Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> model = apply_pruning(Qwen2ForCausalLM(config).eval(), "fastv", layer=2, keep_ratio=0.25)
    >>> prompt = torch.randint(99, (1, 20))
    >>> vision_mask = torch.zeros(1, 20, dtype=torch.bool)
    >>> vision_mask[:, 2:14] = True
    >>> cache = model(prompt, vision_mask=vision_mask).past_key_values
    >>> [cache.get_seq_length(layer) for layer in range(4)]  # 8 text tokens, and 12 or 3 vision tokens
    [20, 20, 11, 11]
    """
    if method == VisPrunerBudget.name:
        budget = VisPrunerBudget(**_options(method, VisPrunerBudget, options))
        inner = check_encoders("apply_pruning", model, processor, budget)
        remove_pruning(model, processor)
        replace_encoders("apply_pruning", inner, processor, budget)
        setattr(inner, STATE, EncoderPruning(inner, processor))
        return model
    if not isinstance(method, str) or method not in RULES:
        known = (*RULES, VisPrunerBudget.name)
        raise ValueError(f"apply_pruning: method is {method!r}; it must be one of {', '.join(known)}")
    if processor is not None:
        raise TypeError(f"apply_pruning: {method} takes no processor, as prompts keep all their placeholders")
    decoder = Decoder("apply_pruning", model)
    rule = RULES[method](**_options(method, RULES[method], options))
    last = max(stage.dropped for stage in rule.stages)
    if last >= len(decoder.layers):
        raise ValueError(
            f"apply_pruning: {method} drops tokens in front of layer {last}, counted from 0; the decoder has "
            f"{len(decoder.layers)} layers"
        )
    blocks = [number for number, layer in enumerate(decoder.layers, start=1) if _has_block(layer)]
    check_blocks("apply_pruning", rule, blocks)
    remove_pruning(model)
    setattr(decoder.module, STATE, PruningHooks(decoder, rule, model))
    return model


def remove_pruning(model: M, processor: Any = None) -> M:
    """Undo ``apply_pruning``: the model computes what it did before, bit for bit. Others stay as they are.

    Args:
        model: the model that it was applied to.
        processor: the one that ``apply_pruning`` was given, if any.

    Raises:
        TypeError: model is no module; another model's processor.

    >>> from transformers import Qwen2Config, Qwen2ForCausalLM
    >>> config = Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> model = Qwen2ForCausalLM(config)
    >>> remove_pruning(apply_pruning(model, "random")) is model
    True
    """
    check_module("remove_pruning", "model", model)
    for module in model.modules():
        pruning = vars(module).get(STATE)
        if pruning is not None:
            pruning.remove(processor)
            delattr(module, STATE)
    return model


def _has_block(layer: nn.Module) -> bool:
    return any(isinstance(module, VisionRemember) for module in layer.modules())


def _options(method: str, rule: Callable[..., object], options: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(rule).parameters)
    for name in options:
        if name not in known:
            raise TypeError(f"apply_pruning: {method} has no option {name!r}; it has {', '.join(known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


class EncoderPruning:
    """What is left behind by a method that acts in front of the decoder: enough to undo it."""

    def __init__(self, inner: nn.Module, processor: Any) -> None:
        self._inner, self._processor = inner, processor

    def remove(self, processor: Any) -> None:
        """Of the processor that is given, and of the one that was given at the start."""
        for counted in (processor, self._processor):
            restore_encoders("remove_pruning", self._inner, counted, VisPrunerBudget.name)
