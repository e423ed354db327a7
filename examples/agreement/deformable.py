"""`deformable`'s attention beside Deformable DETR's of the old transformers, in whose process it runs whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from examples.agreement.compare import Row, compare, copy_weights, layers, leaf, name_of, randomise, relative_error
from vr_kernels.nn import DeformableCrossAttention


def deformable(dtype: torch.dtype) -> Iterator[Row]:
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention as Attention,
    )

    for grids, queries, width, heads, points, images in (
        ([(24, 24)], (12, 12), 64, 8, 4, 1),
        ([(6, 10)] * 3, (3, 5), 32, 4, 2, 2),
        ([(5, 7), (3, 9)], (2, 3), 24, 3, 5, 3),
    ):
        config = DeformableDetrConfig(
            d_model=width, num_feature_levels=len(grids), disable_custom_kernels=True, use_timm_backbone=False,
            use_pretrained_backbone=False,
        )  # fmt: skip
        theirs = Attention(config, heads, points).to(dtype)
        ours = DeformableCrossAttention(width, (width,) * len(grids), heads, num_points=points, bias=True, dtype=dtype)
        case = f"{' '.join(f'{h}x{w}' for h, w in grids)}, {queries[0]}x{queries[1]} queries, {images} images"
        start = relative_error(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)
        for level in range(1, len(grids)):  # theirs has one projection for all levels
            ours.value_projs[level] = ours.value_projs[0]
        randomise(theirs, 3)
        pairs = layers(
            (theirs.sampling_offsets, ours.sampling_offsets), (theirs.attention_weights, ours.attention_weights),
            (theirs.value_proj, ours.value_projs[0]), (theirs.output_proj, ours.out_proj),
        )  # fmt: skip
        copy_weights(pairs)
        levels = [leaf(images, *grid, width, dtype=dtype, seed=4 + i) for i, grid in enumerate(grids)]
        query = leaf(images, *queries, width, dtype=dtype, seed=9)
        y, x = ((torch.arange(count, dtype=dtype) + 0.5) / count for count in queries)
        centres = torch.stack((x.expand(queries), y[:, None].expand(queries)), -1).reshape(1, -1, 1, 2)
        expected = theirs(
            query.flatten(1, 2),
            encoder_hidden_states=torch.cat([level.flatten(1, 2) for level in levels], 1),
            reference_points=centres.expand(images, -1, len(grids), -1),
            spatial_shapes=torch.tensor(grids),
            level_start_index=None,
        )[0]
        found = ours(query, levels).flatten(1, 2)
        yield compare("deformable", case, expected, found, pairs, [query, *levels])
        yield Row("deformable", case, name_of(dtype), start, variant="the offsets' start")
