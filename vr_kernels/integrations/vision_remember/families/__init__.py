"""The types of models that ``apply_vision_remember`` knows, by their ``config.model_type``."""

from __future__ import annotations

from vr_kernels.integrations.vision_remember.families.family import Family, Layout
from vr_kernels.integrations.vision_remember.families.internvl import InternVL
from vr_kernels.integrations.vision_remember.families.llava import Llava
from vr_kernels.integrations.vision_remember.families.llava_next import LlavaNext
from vr_kernels.integrations.vision_remember.families.llava_onevision import LlavaOnevision
from vr_kernels.integrations.vision_remember.families.qwen2_5_vl import Qwen25VL
from vr_kernels.integrations.vision_remember.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILIES", "Family", "Layout"]

FAMILIES: dict[str, Family] = {
    "internvl": InternVL(),
    "llava": Llava(),
    "llava_next": LlavaNext(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_5_vl": Qwen25VL(),
    "qwen2_vl": Qwen2VL(),
    "qwen3_vl": Qwen2VL(),
}
