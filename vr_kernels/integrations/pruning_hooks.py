"""Where a pruned decoder's passes begin and end: the hooks on the model, and which calls are prompts."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vr_kernels.integrations._decoder import Decoder, named_arguments
from vr_kernels.integrations.pruning_pass import MEMORY, Continuation, Memory, Prefill
from vr_kernels.integrations.pruning_rules import Rule
from vr_kernels.integrations.vision_remember.hooks import refresh_first

# Arguments that go down from module to module.
MASK, SUPERVISED, PASS = "vision_mask", "_vr_kernels_pruning_supervised", "_vr_kernels_pruning_pass"

IGNORED = -100  # of labels: what is not supervised


class PruningHooks:
    """The hooks on one model, and the rule they follow. What a pass knows goes down with it as an argument."""

    def __init__(self, decoder: Decoder, rule: Rule, model: nn.Module) -> None:
        self._decoder, self.rule = decoder, rule
        module = decoder.module
        self._hooks = [
            module.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            module.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]
        for number, layer in enumerate(decoder.layers):
            # In front of other hooks on a layer, which so see what the layer sees.
            before = functools.partial(self._before_layer, number)
            self._hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            refresh_first(layer)
        # The innermost: around it there may be PEFT's.
        generating: list[Any] = [
            module for module in model.modules() if hasattr(type(module), "prepare_inputs_for_generation")
        ]
        self._generating = generating[-1] if generating else None
        if self._generating is not None:
            self._generating._get_candidate_generator = _refuse_guesses
            self._hooks.append(self._generating.register_forward_pre_hook(_note_supervised, with_kwargs=True))
        if decoder.holder is not None:
            self._hooks.append(decoder.holder.register_forward_pre_hook(self._before_holder, with_kwargs=True))
        elif self._generating is not None:
            _accept_mask(self._generating)

    def remove(self, processor: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._generating is not None:
            for name in ("prepare_inputs_for_generation", "_get_candidate_generator"):
                vars(self._generating).pop(name, None)

    def _before_holder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        vision = self._decoder.vision_tokens(named_arguments(module, args, kwargs))
        return args, {MASK: vision, **kwargs}

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        vision, supervised = kwargs.pop(MASK, None), kwargs.pop(SUPERVISED, None)
        step = self._step(named_arguments(module, args, kwargs), vision, supervised)
        return args, kwargs if step is None else {**kwargs, PASS: step}

    def _before_layer(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        step = kwargs.pop(PASS, None)
        return args if step is None else (step.enter(number, args[0], kwargs), *args[1:]), kwargs

    def _after_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        step = kwargs.get(PASS)
        if step is None:
            return output
        if isinstance(output, tuple):
            return (step.leave(output[0]), *output[1:])
        output.last_hidden_state = step.leave(output.last_hidden_state)
        return output

    def _step(
        self, given: dict[str, Any], vision: Tensor | None, supervised: Tensor | None
    ) -> Prefill | Continuation | None:
        """How this call of the decoder differs from a plain one, if it does."""
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        batch, length = (given["inputs_embeds"] if ids is None else ids).shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        if past > 0:
            return self._continuation(given.get("attention_mask"), cache, vision, batch, length)
        if hasattr(cache, MEMORY):  # of a prompt that the cache has been emptied of
            delattr(cache, MEMORY)
        vision = _checked(self.rule.name, vision, batch, length)
        return None if vision is None else self._prefill(given.get("attention_mask"), cache, vision, supervised)

    def _prefill(self, mask: Any, cache: Any, vision: Tensor, supervised: Tensor | None) -> Prefill:
        name = self.rule.name
        if self._decoder.module.training:
            raise RuntimeError(f"{name}: the model is in training mode; pruning is for inference: call model.eval()")
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                f"{name}: the cache is a {type(cache).__name__}, of fixed length; use a DynamicCache (generate() "
                "without cache_implementation), whose layers may hold different numbers of tokens"
            )
        _refuse_pairs(name, mask)
        return Prefill(self._decoder, self.rule, vision, mask, supervised)

    def _continuation(
        self, mask: Any, cache: Any, vision: Tensor | None, batch: int, length: int
    ) -> Continuation | None:
        name = self.rule.name
        # A token alone was generated, and is looked at no further: on a GPU that would be to wait for it.
        if length > 1 and vision is not None and bool(vision.any()):
            raise ValueError(
                f"{name}: vision tokens come behind {cache.get_seq_length()} tokens that the cache holds; a prompt "
                "that is pruned must come in one piece, with an empty cache and without prefill_chunk_size"
            )
        memory: Memory | None = getattr(cache, MEMORY, None)
        if memory is None:
            return None
        if memory.batch != batch:
            raise ValueError(f"{name}: the cache is of a batch of {memory.batch}, and this call of {batch}")
        _refuse_pairs(name, mask)
        return Continuation(self._decoder, memory, mask)


def _note_supervised(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before the forward of the model with the head: an answer that is to be scored has no say in what is dropped."""
    labels = named_arguments(module, args, kwargs).get("labels")
    return args, kwargs if labels is None else {**kwargs, SUPERVISED: labels != IGNORED}


def _refuse_pairs(name: str, mask: Any) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ValueError(f"{name}: attention_mask must be (B, N), of tokens; a mask of pairs cannot be pruned")


def _checked(name: str, vision: Tensor | None, batch: int, length: int) -> Tensor | None:
    """A prompt's mask of vision tokens; None where it has none."""
    if vision is None:
        return None
    if not isinstance(vision, Tensor) or vision.dtype != torch.bool:
        got = vision.dtype if isinstance(vision, Tensor) else type(vision).__name__
        raise TypeError(f"{name}: vision_mask is {got}; it must be a torch.bool tensor, True at vision tokens")
    if vision.dim() != 2 or vision.shape[0] != batch or vision.shape[1] > length:
        raise ValueError(
            f"{name}: vision_mask has shape {tuple(vision.shape)}; it must be ({batch}, {length}), as the prompt"
        )
    if not bool(vision.any()):
        return None
    # Without a cache, what was generated stands behind the prompt that the mask is of.
    return F.pad(vision, (0, length - vision.shape[1]))


def _accept_mask(model: Any) -> None:
    """Let generate() take vision_mask, which it would refuse as unknown, and hand it on with the prompt."""
    original = type(model).prepare_inputs_for_generation

    # generate() reads the names of the arguments, of which the last must be "kwargs".
    def prepare(self: Any, input_ids: Tensor, vision_mask: Tensor | None = None, **kwargs: Any) -> Any:
        inputs = original(self, input_ids, **kwargs)
        if vision_mask is not None and (kwargs.get("is_first_iteration") or not kwargs.get("use_cache", True)):
            inputs[MASK] = vision_mask
        return inputs

    model.prepare_inputs_for_generation = MethodType(prepare, model)


def _refuse_guesses(**kwargs: Any) -> NoReturn:
    """In the place of what generate() makes its candidates with."""
    raise ValueError(
        "apply_pruning: assistant_model or prompt_lookup_num_tokens guesses tokens, which come together with the "
        "prompt, whose last token says what is dropped; leave it out, or remove_pruning(model) first"
    )
