"""What Vision Remember needs of a model's encoder, riding on the encoder's own output.

``generate()`` encodes images before the first forward pass, and repeats what it knows of for beams: of an encoder's
output these are ``pooler_output`` and ``deepstack_features``, lists with an entry an image. So everything here is such
lists, behind those that the model itself may have. Where a model lies on several devices, accelerate makes each output
anew from its items, and attributes are lost: so the lists are an item as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ITEM = "carried_features"  # of an output: the lists once more


@dataclass(frozen=True)
class EncodedImages:
    """The encoder's features image by image, and which of them each slot of the image in the prompt reads.

    Args:
        levels: for each level, a list of one tensor an image: (tiles, H, W, D_l) where the model has a grid a tile, or
            (rows, D_l) in any order.
        places: an image's (slots, K) int64, slots in the order of the prompt. With a grid K is 1 and it is the cell
            (tile*n_h + row)*n_w + column that stands in the slot; without one it is the feature rows that the slot
            reads. -1 is absent, and a slot without any (a newline) is no vision token.
        saliency: an image's (tiles, H, W) or (rows,); None for none.
    """

    levels: tuple[Sequence[Tensor], ...]
    places: Sequence[Tensor]
    saliency: Sequence[Tensor] | None = None

    def attach(self, outputs: Any) -> Any:
        """Let an encoder's output carry this; the same object."""
        saliency = [] if self.saliency is None else [list(self.saliency)]
        carried = [*map(list, self.levels), *saliency, list(self.places)]
        outputs.deepstack_features = [*(getattr(outputs, "deepstack_features", None) or []), *carried]
        outputs[ITEM] = outputs.deepstack_features
        return outputs

    @classmethod
    def detach(cls, outputs: Any, num_levels: int, *, saliency: bool) -> tuple[EncodedImages, Any]:
        """What ``outputs`` carries, and a copy of it that carries it no longer: uncached generation reads it again.

        Raises:
            ValueError: it carries nothing, because the prefill was cut up or the model encoded the image elsewhere.
        """
        carried = getattr(outputs, "deepstack_features", None) or outputs.get(ITEM) or []
        own = len(carried) - (num_levels + int(saliency) + 1)
        if own < 0:
            raise ValueError(
                "vision_remember: the encoder's output carries no features for the blocks; encode the images with "
                "this model's get_image_features, and leave prefill_chunk_size out, which cuts them up"
            )
        plain = copy.copy(outputs)
        plain.deepstack_features = carried[:own] or None
        plain[ITEM] = None
        levels = tuple(carried[own : own + num_levels])
        return cls(levels, places=carried[-1], saliency=carried[-2] if saliency else None), plain


def cut_if_frozen(
    states: tuple[Tensor, ...], saliency: Tensor | None, *, pixels: Any, parameters: Iterable[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """What was captured of an encoder with these parameters, without a graph where neither they nor pixels are trained.

    A frozen encoder has a graph even so where its embeddings were made to require gradients, for reentrant
    checkpoints: nobody reads what would run back through it, and those of two blocks would do so twice.
    """
    if getattr(pixels, "requires_grad", False) or any(parameter.requires_grad for parameter in parameters):
        return states, saliency
    return tuple(level.detach() for level in states), None if saliency is None else saliency.detach()


def note_prompt(
    mm_encoder_outputs: Any, input_ids: Tensor | None, attention_mask: Any, logits_to_keep: Any = 1
) -> None:
    """At the start of a generation: which positions are prompt, kept with its images for ``add_prompt``.

    Later steps without a cache see what was generated as well, and a static cache turns the mask into one that no
    longer says what padding is. ``logits_to_keep`` is what ``generate`` asks for before it knows of guessed tokens.
    """
    image = (mm_encoder_outputs or {}).get("image")
    if image is None:
        return
    image[ITEM] = getattr(image, "deepstack_features", None)  # by now repeated for beams
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        image["prompt_mask"] = attention_mask.bool()
    elif input_ids is not None:
        image["prompt_mask"] = torch.ones_like(input_ids, dtype=torch.bool)
    image["logits_to_keep"] = logits_to_keep


def add_prompt(inputs: dict[str, Any]) -> dict[str, Any]:
    """Give a pass of a generation that reads images the prompt that was noted. A pass by itself, with images that a
    generation has read before, gets none."""
    image = (inputs.get("mm_encoder_outputs") or {}).get("image")
    if image is not None and inputs.get("prompt_mask") is None:
        inputs["prompt_mask"] = image.get("prompt_mask")
    return inputs


def forget_guesses(mm_encoder_outputs: Any, prompt_mask: Tensor | None, logits_to_keep: Any) -> Tensor | None:
    """The prompt of a pass, in the first one of an assisted generation without the tokens that were guessed and stand
    behind it. That pass asks for the logits of each of them too, beyond what ``note_prompt`` noted."""
    image: Any = (mm_encoder_outputs or {}).get("image")
    if image is None or prompt_mask is None or image.get("prompt_mask") is not prompt_mask:
        return prompt_mask
    noted, length = image.get("logits_to_keep"), prompt_mask.shape[1]
    if not isinstance(noted, int) or not isinstance(logits_to_keep, int) or logits_to_keep <= noted:
        return prompt_mask
    before = torch.arange(length, device=prompt_mask.device) < length - (logits_to_keep - noted)
    image["prompt_mask"], image["logits_to_keep"] = prompt_mask & before, logits_to_keep
    return prompt_mask & before
