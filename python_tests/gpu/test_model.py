"""LLaVA-VR on the GPU in bfloat16: it learns, and what it says does not depend on the kernels that compute it."""

from __future__ import annotations

import pytest
import torch

from python_tests._operators import LOCAL_CROSS_ATTENTION
from python_tests.gpu._gpu import KERNELS, moved, need
from vr_kernels.nn import LocalCrossAttention

pytestmark = pytest.mark.gpu
pytest.importorskip("transformers", minversion="5.20")

from python_tests.models import _llava_vr as tiny  # noqa: E402


@pytest.mark.parametrize("backend", [None, *KERNELS["local_cross_attention"]])
@pytest.mark.parametrize("tower", tiny.TOWERS)
def test_a_model_trains_and_generates(tower: str, backend: str | None) -> None:
    if backend is not None:
        need(LOCAL_CROSS_ATTENTION, backend)
    model = tiny.model(tower, dtype=torch.bfloat16).cuda()
    attentions = [module for module in model.modules() if isinstance(module, LocalCrossAttention)]
    assert attentions
    for attention in attentions:
        attention.backend = backend
    inputs = moved(tiny.inputs(tiny.processor(model.config), ["w1 <image> w2 w3"], [tiny.image()]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], losses
    with torch.inference_mode():
        answer = model.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
