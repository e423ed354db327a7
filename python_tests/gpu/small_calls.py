"""Every GPU kernel once on a small call, forward and backward: for compute-sanitizer, which slows them a hundredfold.

compute-sanitizer --tool memcheck python -m python_tests.gpu.small_calls
"""

from __future__ import annotations

import torch

from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import SUBJECTS
from python_tests.gpu._gpu import KERNELS, draws, moved, refusal


def main() -> None:
    for subject in SUBJECTS:
        for backend in KERNELS[subject.name]:
            reason = refusal(subject, backend)
            for name, draw in draws(subject).items():
                print(f"{subject.name} {backend} {name}: {reason or 'runs'}", flush=True)
                for dtype in (torch.float32, torch.bfloat16) if reason is None else ():
                    call = moved(subject.call(dtype=dtype, **draw))
                    function = subject.run(backend)
                    evaluate(function, call, random_cotangents(function, call))
                    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
