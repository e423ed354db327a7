"""Vision Remember between the decoder layers of models of transformers: the seam, and one call for existing models."""

from vr_kernels.integrations.vision_remember.context import VisionRememberContext, prompt_of_labels
from vr_kernels.integrations.vision_remember.encoded import EncodedImages, note_prompt
from vr_kernels.integrations.vision_remember.hooks import insert_blocks, remove_blocks
from vr_kernels.integrations.vision_remember.prefill import image_slots, prefill_context

__all__ = [
    "EncodedImages",
    "VisionRememberContext",
    "image_slots",
    "insert_blocks",
    "note_prompt",
    "prefill_context",
    "prompt_of_labels",
    "remove_blocks",
]
