"""FastV, PyramidDrop and SparseVLM as their authors run them, in the process of the old transformers: what came out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from examples.agreement.compare import normal, randomise
from examples.agreement.sources import PACKAGE, load

WIDTH, HEADS = 64, 4
NOISES = 3  # runs of SparseVLM, which draws noise

Case = dict[str, Any]  # weights, config, inputs, span, options, and of each run its hidden states, layer by layer


def config(layers: int, key_heads: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=key_heads, vocab_size=99, pad_token_id=0, max_position_embeddings=2048,
    )  # fmt: skip


def randomised(model: nn.Module, dtype: torch.dtype, seed: int, gain: float) -> Any:
    model = model.to(dtype).eval()
    randomise(model, seed, gain=gain, mean=1.0, spread=0.1)
    return model


def described(model: nn.Module, prefix: str, inputs: Tensor, start: int, count: int, options: Case) -> Case:
    names = "num_hidden_layers", "num_key_value_heads"
    return {
        "weights": {prefix + name: value for name, value in model.state_dict().items() if "rotary" not in name},
        "config": {name: getattr(model.config, name) for name in names},
        "inputs": inputs,
        "span": (start, start + count),
        "options": options,
        "runs": [],
    }


@contextmanager
def hidden_states(layers: nn.ModuleList, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """What each layer gives, while torch's default dtype, in which they make masks, is the model's."""
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone())) for layer in layers]
    torch.set_default_dtype(dtype)
    try:
        yield outputs
    finally:
        torch.set_default_dtype(torch.float32)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def fastv(dtype: torch.dtype) -> Iterator[Case]:
    path = "src/transformers/src/transformers/models/llama/modeling_llama.py"
    package = f"{PACKAGE}.FastV.src.transformers.src.transformers"
    for name in (
        "activations", "modeling_outputs", "modeling_utils", "utils", "models.llama.configuration_llama",
    ):  # fmt: skip
        # It stands in a copy of transformers, whose other files are those of the release.
        sys.modules[f"{package}.{name}"] = importlib.import_module(f"transformers.{name}")
    module = load("FastV", path)
    for seed, (start, count, behind, layer, kept, depth) in enumerate(
        (
            (5, 40, 9, 2, 20, 5),
            (1, 37, 3, 3, 18, 5),
            (35, 576, 20, 2, 288, 4),
            (35, 576, 53, 3, 72, 5),
            (4, 50, 6, 1, 5, 4),
        )
    ):
        settings = config(depth, 2)
        settings.update({
            "use_fast_v": True, "fast_v_sys_length": start, "fast_v_image_token_length": count,
            "fast_v_attention_rank": kept, "fast_v_agg_layer": layer, "fast_v_inplace": True,
        })  # fmt: skip
        model = randomised(module.LlamaForCausalLM(settings), dtype, seed, 2.0)
        inputs = normal(1, start + count + behind, WIDTH, dtype=dtype, seed=seed)
        case = described(model, "", inputs, start, count, {"layer": layer, "keep_ratio": kept / count})
        with hidden_states(model.model.layers, dtype) as outputs:
            model.model(inputs_embeds=inputs, output_attentions=True, use_cache=False)
        yield case | {"runs": [outputs]}


@torch.no_grad()
def pyramiddrop(dtype: torch.dtype) -> Iterator[Case]:
    module = load("PyramidDrop", "llava/model/modeling_llama_pdrop.py", absent=("llava",))
    module.IGNORE_INDEX, module.IMAGE_TOKEN_INDEX = -100, -200  # as in its llava/constants.py
    for seed, (start, count, behind, stages, ratios, depth, batch) in enumerate(
        (
            (5, 40, 9, (2, 4), (0.5, 0.25), 6, 1),
            (1, 37, 3, (1, 2, 3), (0.5, 0.25, 0.125), 5, 2),
            (35, 576, 20, (2, 3, 5), (0.5, 0.25, 0.125), 6, 1),
            (7, 101, 11, (1, 4), (0.7, 0.3), 5, 3),
        ),
        start=50,
    ):
        settings = config(depth, HEADS)
        settings._attn_implementation = "sdpa"
        model = randomised(module.LlamaForCausalLM(settings), dtype, seed, 2.0)
        decoder = model.model
        decoder.layer_list, decoder.image_token_ratio_list = list(stages), [1.0, *ratios]
        decoder.image_tokens, decoder.image_token_posi = [count] * batch, [start] * batch
        decoder.prompt_len = [start + behind] * batch
        inputs = normal(batch, start + count + behind, WIDTH, dtype=dtype, seed=seed)
        case = described(model, "", inputs, start, count, {"layers": stages, "keep_ratios": ratios})
        with hidden_states(decoder.layers, dtype) as outputs:
            first, _ = decoder.pdrop_forward(inputs_embeds=inputs, use_cache=True, return_dict=True)
            if batch == 1:  # its decoding fails with a batch
                case["next"] = normal(1, 1, WIDTH, dtype=dtype, seed=seed + 40)
                decoder.pdrop_forward(
                    inputs_embeds=case["next"], use_cache=True, return_dict=True,
                    past_key_values=first.past_key_values, position_ids=torch.tensor([[inputs.shape[1]]]),
                )  # fmt: skip
        yield case | {"runs": [outputs]}


@torch.no_grad()
def sparsevlm(dtype: torch.dtype) -> Iterator[Case]:
    """Its code times itself on a GPU and moves positions there: here neither."""
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 0.0)
    for owner, name, stand_in in (
        (torch.Tensor, "cuda", lambda self: self), (torch.cuda, "Event", lambda **_: event),
        (torch.cuda, "synchronize", lambda: None),
    ):  # fmt: skip
        setattr(owner, name, stand_in)
    folder = "llava/model/language_model/"
    utils, score = (load("SparseVLM", f"{folder}{name}.py") for name in ("utils", "score"))
    utils.loggerinfo.setLevel("WARNING")
    module = load("SparseVLM", f"{folder}modelling_sparse_llama.py")
    paper, small = ((2, 6, 15), (300, 200, 110)), ((2, 3, 5), (303, 110, 36))
    for seed, (start, count, behind, (stages, kept), depth, gain) in enumerate(
        (
            (5, 60, 9, ((1, 2), (30, 12)), 4, 0.5), (1, 151, 3, ((0, 2, 3), (60, 40, 20)), 5, 0.5),
            (35, 576, 20, paper, 17, 0.5), (35, 576, 53, small, 7, 0.5),
            (35, 576, 53, ((2, 3, 5), (66, 30, 17)), 7, 0.5), (3, 45, 17, ((1,), (44,)), 3, 0.5),
            (0, 90, 7, ((1, 2), (20, 10)), 4, 0.5),
            (5, 60, 9, ((1, 2), (30, 12)), 4, 2.0), (35, 576, 20, paper, 17, 2.0), (35, 576, 53, small, 7, 2.0),
        ),
        start=70,
    ):  # fmt: skip
        score.layer_dict.clear()
        score.layer_dict.update({layer: i for i, layer in enumerate(stages)})
        score.sparse_token_dict[score.RETAIN_TOKN] = list(kept)
        settings = config(depth, 2)
        settings._attn_implementation = "sdpa"
        model = randomised(module.LlamaDynamicvitModel(settings, pruning_loc=list(stages)), dtype, seed, gain)
        inputs = normal(1, start + count + behind, WIDTH, dtype=dtype, seed=seed) * (0.5 if gain < 1 else 1)
        case = described(model, "model.", inputs, start, count, {"layers": stages, "keep_counts": kept})
        case["next"] = normal(1, 1, WIDTH, dtype=dtype, seed=seed + 120)
        case["variant"] = "" if gain < 1 else "densities below 1e-6"  # which larger weights lead to
        for noise in range(NOISES):
            torch.manual_seed(noise)
            with hidden_states(model.layers, dtype) as outputs:
                first = model(
                    inputs_embeds=inputs, use_cache=True, return_dict=True, image_shape=count,
                    token_length_list=[inputs.shape[1]], pre_prompt_length_list=[start],
                )[2]  # fmt: skip
                model(
                    inputs_embeds=case["next"], use_cache=True, return_dict=True,
                    past_key_values=first.past_key_values, position_ids=torch.tensor([[0]]),
                )  # fmt: skip
            case["runs"].append(outputs)
        yield case
