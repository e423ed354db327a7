"""What LLaVA-VR relies on inside transformers beyond what it documents, all of it in this one file.

| what                                                                   | 5.20 | 5.21 to 5.22 | 5.23 |
|------------------------------------------------------------------------|------|--------------|------|
| ``generate`` encodes images first, and hands on ``mm_encoder_outputs`` | yes  | yes          | yes  |
| ``prefill_chunk_size`` drops the encoded images without a word         | yes  | not looked at | no   |
| ``initialize_weights`` draws what a checkpoint lacks, and marks what it   | yes  | yes          | yes  |
| does not lack with ``_is_hf_initialized``                              |      |              |      |
| towers have no ``vision_model.`` level, old keys are renamed           | yes  | yes          | yes  |
| renamings that a package registers are applied to its own classes      | yes  | yes          | yes  |
| ``save_pretrained`` turns renamings around, unless told not to         | yes  | yes          | yes  |
| ``*ImageProcessorPil`` classes need no torchvision                     | yes  | yes          | yes  |
"""

from __future__ import annotations

from typing import Any

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.image_processing_utils import select_best_resolution
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextPreTrainedModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.processing_utils import MultiModalData
from transformers.utils.generic import can_return_tuple

__all__ = [
    "CLIPImageProcessorPil",
    "LlavaNextImageProcessorPil",
    "LlavaNextPreTrainedModel",
    "MultiModalData",
    "SiglipImageProcessorPil",
    "can_return_tuple",
    "is_part_of_a_prefill",
    "register_renamings",
    "select_best_resolution",
]


def register_renamings(model_type: str, renamings: dict[str, str]) -> None:
    """Let models of this type load checkpoints whose keys match a pattern: each that matches applies, in this order."""
    mapping = [WeightRenaming(source, target) for source, target in renamings.items()]
    register_checkpoint_conversion_mapping(model_type, mapping, overwrite=True)


def is_part_of_a_prefill(is_first_iteration: bool | None, past_key_values: Any) -> bool:
    """Whether ``generate`` of 5.20 prepares a piece of a prompt that it cut up, or of any version the prompt of an
    assistant: no decoding step has an empty cache."""
    return not is_first_iteration and past_key_values is not None and past_key_values.get_seq_length() == 0
