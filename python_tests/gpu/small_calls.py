"""Every GPU kernel once on a small call, forward and backward: for compute-sanitizer, which slows them a hundredfold.

compute-sanitizer --tool memcheck python -m python_tests.gpu.small_calls
"""

from __future__ import annotations

import torch

from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import SUBJECTS, Draw, Subject
from python_tests.gpu._gpu import KERNELS, draws, moved, refusal

# More heads than a tile has, and a gradient that needs no product behind the scores: tiles follow without a pause.
ALONE: dict[str, tuple[Draw, list[str]]] = {
    "local_attention": ({"heads": 18, "kv_heads": 1}, ["key"]),
    "local_cross_attention": ({"heads": 18}, ["features[0]"]),
}


def cases(subject: Subject) -> dict[str, tuple[Draw, list[str] | None]]:
    """What calls are drawn with, and whose gradients are asked for; None: everyone's."""
    named: dict[str, tuple[Draw, list[str] | None]] = {name: (draw, None) for name, draw in draws(subject).items()}
    return named | ({"alone": ALONE[subject.name]} if subject.name in ALONE else {})


def main() -> None:
    for subject in SUBJECTS:
        for backend in KERNELS[subject.name]:
            reason = refusal(subject, backend)
            for name, (draw, wanted) in cases(subject).items():
                print(f"{subject.name} {backend} {name}: {reason or 'runs'}", flush=True)
                for dtype in (torch.float32, torch.bfloat16) if reason is None else ():
                    call = moved(subject.call(dtype=dtype, **draw))
                    function = subject.run(backend)
                    evaluate(function, call, random_cotangents(function, call), wanted)
                    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
