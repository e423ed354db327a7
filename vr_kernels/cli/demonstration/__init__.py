"""The parts of ``vr-kernels demo``: a photograph's features, the stock resampler, the figure."""
