"""Which vision tokens a decoder goes on with: the rules of FastV, PyramidDrop, SparseVLM, VisPruner, and chance."""

from vr_kernels.compression.pruning.fastv import fastv
from vr_kernels.compression.pruning.pyramiddrop import pyramiddrop
from vr_kernels.compression.pruning.random_rows import random_rows
from vr_kernels.compression.pruning.ranking import budget, keep_highest
from vr_kernels.compression.pruning.sparsevlm import density_peak_means, rate_by_text, recycle, text_raters
from vr_kernels.compression.pruning.vispruner import diverse_tokens, vispruner

__all__ = [
    "budget",
    "density_peak_means",
    "diverse_tokens",
    "fastv",
    "keep_highest",
    "pyramiddrop",
    "random_rows",
    "rate_by_text",
    "recycle",
    "text_raters",
    "vispruner",
]
