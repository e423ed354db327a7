"""The page of ``vr-kernels app``. ``layout`` alone knows Gradio; what it shows is made by the other files."""
