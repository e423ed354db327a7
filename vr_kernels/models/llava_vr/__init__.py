"""LLaVA-VR, the reference model: importing this registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig
from vr_kernels.models.llava_vr.modeling_llava_vr import LlavaVRForConditionalGeneration, LlavaVRModel
from vr_kernels.models.llava_vr.processing_llava_vr import LlavaVRProcessor

__all__ = ["LlavaVRConfig", "LlavaVRForConditionalGeneration", "LlavaVRModel", "LlavaVRProcessor"]

AutoConfig.register("llava_vr", LlavaVRConfig, exist_ok=True)
AutoModel.register(LlavaVRConfig, LlavaVRModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaVRConfig, LlavaVRForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaVRConfig, LlavaVRProcessor, exist_ok=True)
