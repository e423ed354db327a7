"""The page of ``vr-kernels app``. ``layout``, ``column`` and ``privacy`` know Gradio; the others are tested without."""
