"""Reference models, as transformers' own classes. Nothing here is imported before it is used.

``vr_kernels.models.llava_vr``: ``LlavaVRConfig``, ``LlavaVRModel``, ``LlavaVRForConditionalGeneration`` and
``LlavaVRProcessor``. Importing it lets transformers' Auto classes load them.
"""
