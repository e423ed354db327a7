"""Vision Remember between the decoder layers of models of transformers: the seam, and one call for existing models."""

from vr_kernels.integrations.vision_remember.apply import (
    apply_vision_remember,
    peft_modules_to_save,
    remove_vision_remember,
)
from vr_kernels.integrations.vision_remember.attention import WindowAttention, record_window_attention
from vr_kernels.integrations.vision_remember.checkpoint import load_vision_remember, save_vision_remember
from vr_kernels.integrations.vision_remember.context import VisionRememberContext, prompt_of_labels
from vr_kernels.integrations.vision_remember.encoded import (
    EncodedImages,
    add_prompt,
    cut_if_frozen,
    forget_guesses,
    note_prompt,
)
from vr_kernels.integrations.vision_remember.hooks import insert_blocks, remove_blocks
from vr_kernels.integrations.vision_remember.prefill import image_slots, prefill_context, refuse_guided_cache

__all__ = [
    "EncodedImages",
    "VisionRememberContext",
    "WindowAttention",
    "add_prompt",
    "apply_vision_remember",
    "cut_if_frozen",
    "forget_guesses",
    "image_slots",
    "insert_blocks",
    "load_vision_remember",
    "note_prompt",
    "peft_modules_to_save",
    "prefill_context",
    "prompt_of_labels",
    "record_window_attention",
    "refuse_guided_cache",
    "remove_blocks",
    "remove_vision_remember",
    "save_vision_remember",
]
