"""Every operator that ``vr-kernels bench`` measures, by name."""

from __future__ import annotations

from typing import Any

from vr_kernels.cli.measure.bench import Bench
from vr_kernels.cli.measure.bidirectional_attention import BidirectionalAttentionBench
from vr_kernels.cli.measure.deformable_attention import DeformableAttentionBench
from vr_kernels.cli.measure.fastv import FastVBench
from vr_kernels.cli.measure.importance import AttentionImportanceBench, AttentionReceivedBench
from vr_kernels.cli.measure.llava_vr import LlavaVRBench
from vr_kernels.cli.measure.local_attention import LocalAttentionBench
from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench
from vr_kernels.cli.measure.saliency import SaliencyBench
from vr_kernels.cli.measure.token_fusion import TokenFusionBench
from vr_kernels.cli.measure.visionzip import VisionZipBench

_ALL: tuple[Bench[Any, Any], ...] = (
    LocalCrossAttentionBench(),
    LocalAttentionBench(),
    BidirectionalAttentionBench(),
    DeformableAttentionBench(),
    AttentionImportanceBench(),
    AttentionReceivedBench(),
    SaliencyBench(),
    TokenFusionBench(),
    VisionZipBench(),
    FastVBench(),
    LlavaVRBench(),
)
BENCHES = {bench.name: bench for bench in _ALL}
