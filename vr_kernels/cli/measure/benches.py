"""Every operator that ``vr-kernels bench`` measures, by name."""

from __future__ import annotations

from typing import Any

from vr_kernels.cli.measure.bench import Bench
from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench
from vr_kernels.cli.measure.token_fusion import TokenFusionBench

BENCHES: dict[str, Bench[Any, Any]] = {bench.name: bench for bench in (LocalCrossAttentionBench(), TokenFusionBench())}
