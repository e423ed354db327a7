"""From the arguments of one forward pass to the context of its blocks, and refusals of what cannot be right."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.integrations.vision_remember.context import (
    GUIDED,
    VisionRememberContext,
    context_of_images,
    context_without_images,
    prompt_text,
)
from vr_kernels.integrations.vision_remember.encoded import EncodedImages
from vr_kernels.nn import VisionRememberConfig


def prefill_context(
    image_mask: Tensor,
    outputs: Any | None,
    config: VisionRememberConfig,
    *,
    dtype: torch.dtype,
    grid: tuple[int, int] | None = None,
    feature_grid: tuple[int, int] | None = None,
    tiles_apart: bool = False,
    training: bool = False,
    attention_mask: object = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    prompt_mask: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
) -> tuple[VisionRememberContext | None, Any | None]:
    """The context of a forward pass, and the encoder's output without what it carried for the blocks.

    A pass without images is a decoding step or text alone: no context, but in training one that touches every block.

    Args:
        image_mask: (B, T) bool, the image slots of the tokens in this pass.
        outputs: the encoder's output, with ``EncodedImages``, or None.
        config: of the blocks. grid, tiles_apart: of the ``EncodedImages``. feature_grid: (H, W) of a tile, where there
            is a grid; a pass without images cannot see it.
        dtype: of the hidden states. training: whether the pass must touch every block, and knows its prompt.
        attention_mask, position_ids, past_key_values, prompt_mask, cu_seq_lens_q: the forward's own.

    Raises:
        ValueError: a prefill that was cut up or continues a cache; packed sequences; a mask that does not tell padding.
    Warns of training with a text guide that nobody told where the prompt ends.
    """
    if outputs is None:
        if not training:
            return None, None
        shape = (image_mask.shape[0], image_mask.shape[1])
        geometry: dict[str, Any] = {"window": config.window, "grid": grid, "feature_grid": feature_grid}
        return context_without_images(shape, image_mask.device, **geometry), None
    images, plain = EncodedImages.detach(outputs, len(config.feature_dims), saliency=config.saliency != "none")
    cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if cached > 0:
        raise ValueError(
            f"vision_remember: images come with a cache of {cached} tokens; give prompt and images in one prefill, for "
            "image tokens read the whole prompt"
        )
    if cu_seq_lens_q is not None or _restarts(position_ids, attention_mask):
        raise ValueError(
            "vision_remember: several samples are packed into one sequence; give one sample a row, for image tokens "
            "attend to the text of their row"
        )
    text, bidirectional = None, "bidirectional" in config.layers
    if bidirectional and config.text_guide != "none":
        text = prompt_text(image_mask, attention_mask=attention_mask, prompt_mask=prompt_mask)
        if prompt_mask is None and training:
            # No refusal: a new model is in training mode, and a first pass of it need not train.
            warnings.warn(
                "vision_remember: the model is in training and gets neither labels nor prompt_mask, so that image "
                "tokens read the answer; give prompt_mask (B, T), True at the prompt. A Trainer with "
                "label_smoothing_factor or compute_loss_func keeps labels from the model, as does a model around it "
                "that was not patched",
                stacklevel=2,
            )
    if position_ids is not None and position_ids.dim() == 3:
        # Of four rows the first is the place in the text. Three are time, row and column: the place is the slot's.
        position_ids = position_ids[0] if len(position_ids) == 4 else None
    context = context_of_images(
        image_mask,
        images,
        dtype=dtype,
        text_mask=text,
        grid=grid,
        tiles_apart=tiles_apart,
        newline_keys=bidirectional and config.newline_keys,
        position_ids=position_ids if bidirectional and config.bidirectional_rope_theta is not None else None,
    )
    return context, plain


def refuse_guided_cache(operation: str, past_key_values: Any) -> None:
    """At the start of a generation: a cache whose images were guided by the text of another prompt."""
    cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if cached > 0 and getattr(past_key_values, GUIDED, False):
        raise ValueError(
            f"{operation}: the prompt goes on from a cache of {cached} tokens with images, which were read with the "
            "text of an earlier prompt; give the whole dialogue in one prefill, without past_key_values"
        )
    if cached == 0 and hasattr(past_key_values, GUIDED):  # it was emptied of what it held
        delattr(past_key_values, GUIDED)


def image_slots(
    embedding: nn.Module, image_token_id: int, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """(B, T) bool, where placeholders stand; of embeddings those that equal the placeholder's."""
    if input_ids is not None:
        return input_ids == image_token_id
    assert inputs_embeds is not None
    placeholder = embedding(torch.tensor(image_token_id, device=inputs_embeds.device))
    return (inputs_embeds == placeholder).all(-1)  # type: ignore[no-any-return]


def _restarts(position_ids: Tensor | None, attention_mask: object) -> bool:
    """Whether positions fall between two valid tokens of a row; of several for each token the first counts, which is
    the place in the text or in time."""
    if position_ids is not None and position_ids.dim() == 3:
        position_ids = position_ids[0]
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return False
    falls = position_ids[:, 1:] < position_ids[:, :-1]
    if isinstance(attention_mask, Tensor) and attention_mask.shape == position_ids.shape:
        valid = attention_mask.bool()
        falls = falls & valid[:, 1:] & valid[:, :-1]
    return bool(falls.any())
