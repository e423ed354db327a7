"""The page of ``vr-kernels app``. Gradio is known to ``layout``, ``column`` and ``privacy``; what they show is made by the
other files, which are tested without it."""
