"""What a training step of LLaVA-VR takes in both phases: forward, backward and AdamW, time and memory."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vr_kernels.cli import environment
from vr_kernels.cli.measure.llava_vr.cases import SHAPES
from vr_kernels.cli.measure.llava_vr.models import make_subjects
from vr_kernels.models.training.phases import set_phase

WARM_UP, STEPS = 2, 5


def measure(subject: Any, phase: int, device: str) -> dict[str, float]:
    """With float32 parameters under bfloat16 autocast, as ``vr-kernels train`` trains; the labels are the prompt.

    The peak holds the other models' projectors too, which are small.
    """
    set_phase(subject.model, phase)
    trained = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = subject.model(**subject.inputs, labels=subject.inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    found = {"seconds": statistics.median(seconds[WARM_UP:]), "trained, M": sum(p.numel() for p in trained) / 1e6}
    if device == "cuda":
        found["peak, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="v2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()

    case = replace(SHAPES[given.shape], device=given.device, batch=given.batch)
    case = case.quick() if given.quick else case
    subjects, rows = make_subjects(case), []
    for name in ("ours", "naive", "pool"):
        for phase in (1, 2):
            with subjects[name] as subject:
                rows.append({"model": name, "phase": phase, **measure(subject, phase, given.device)})
            print(rows[-1], flush=True)
            record = {
                "training": given.shape,
                "sizes": case.sizes,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "environment": environment.report(),
                "rows": rows,
            }
            given.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
