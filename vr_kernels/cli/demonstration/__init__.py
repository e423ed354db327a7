"""The two acts of ``vr-kernels demo``: trained models that read an image, and an operator on a photograph."""
