"""What the reproduction's models cost, held to formulas written by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from examples.reproduction import cost, model, rows
from examples.reproduction.tasks import find_task

DIGITS = find_task("digits")


def flops_of(row: str) -> dict[str, int]:
    return cost.prefill_flops(DIGITS, rows.ROWS[row], model.build_model(DIGITS, rows.ROWS[row], 0, None))


def test_arithmetic_is_that_of_the_formulas() -> None:
    flops = {row: flops_of(row) for row in ("pool", "local", "global")}
    d, inner, layers, length, vocabulary = 128, 256, 8, 19, len(model.vocabulary(DIGITS))
    matrices = 2 * d * d + 2 * d * 64 + 3 * d * inner  # q and o, k and v of half the heads, gate, up and down
    assert flops["pool"]["language_model"] == layers * (2 * length * matrices + 4 * length**2 * d)
    assert flops["pool"]["lm_head"] == 2 * vocabulary * d
    assert flops["pool"]["vision_remember"] == 0
    c = 64  # one level
    assert flops["local"]["vision_remember"] == 2 * (2 * 16 * (2 * d * c + 4 * c * c) + 4 * 16 * 4 * 9 * c)
    assert flops["local"]["vision_tower"] == flops["pool"]["vision_tower"]
    assert flops["global"]["vision_remember"] > 3 * flops["local"]["vision_remember"]


def test_arithmetic_of_projectors_and_other_blocks_counts_what_reads_every_feature() -> None:
    flops = {row: flops_of(row) for row in ("ldpv2", "perceiver", "token-packer", "deepstack", "sva")}
    n, p, c, d = 16, 144, 64, 128  # tokens, features, and the widths of encoder and decoder
    assert flops["ldpv2"]["multi_modal_projector"] == 2 * (p * c * d + n * d * d + n * 9 * d)
    attention = 2 * n * 2 * d * d + 2 * p * 2 * d * d + 4 * n * p * d  # q and the output, k and v, both products
    assert flops["perceiver"]["multi_modal_projector"] == 2 * p * c * d + attention + 2 * n * d * d
    of_features = 2 * (4 * c * c + c * c + c * c)  # an MLP of four levels and a projection, for keys and for values
    of_tokens = 3 * c * c + c * d + d * d  # the query twice and the output, and the MLP
    assert flops["token-packer"]["multi_modal_projector"] == 2 * (p * of_features + n * of_tokens) + 4 * n * 9 * c
    assert flops["deepstack"]["vision_remember"] == 3 * 2 * n * ((9 * c) ** 2 + 9 * c * d)
    projections = n * (2 * d * d + d * d + d * d + 2 * d * d) + p * 6 * c * d + c * d  # one row is the image's mean
    assert flops["sva"]["vision_remember"] == 2 * (2 * projections + 4 * n * 9 * 3 * d)


def test_the_wider_decoder_costs_what_the_blocks_cost() -> None:
    full, wide = (sum(flops_of(row).values()) for row in ("full", "wide"))
    assert wide == pytest.approx(full, rel=0.005)
