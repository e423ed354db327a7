"""LLaVA-STF on a stock CLIP tower: eight levels fused into one grid, 2x2 neighbours into one token for the decoder."""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vr_kernels import MultiBlockTokenFusion, SpatialTokenFusion, capture_features
from vr_kernels.nn.token_fusion import fusion_levels

DECODER_WIDTH = 96


def main() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=24, num_attention_heads=2, image_size=64, patch_size=8
    )
    tower = CLIPVisionModel(config).eval().requires_grad_(False)
    levels = fusion_levels(config.num_hidden_layers)
    fuse_levels = MultiBlockTokenFusion((config.hidden_size,) * len(levels))
    fuse_neighbours = SpatialTokenFusion(config.hidden_size, DECODER_WIDTH, kernel_size=2)

    images, wanted = torch.randn(2, 3, 64, 64), torch.randn(2, 16, DECODER_WIDTH)
    with torch.no_grad(), capture_features(tower, levels) as captured:
        tower(images)
    print("levels", levels, "of", tuple(captured.features[0].shape))  # (B, 8, 8, 32) each, never concatenated

    tokens = fuse_neighbours(fuse_levels(captured.features))
    print("tokens", tuple(tokens.shape), "in a grid of", fuse_neighbours.output_grid(8, 8))
    nn.functional.mse_loss(tokens, wanted).backward()
    trained = [*fuse_levels.parameters(), *fuse_neighbours.parameters()]
    print("gradients for", sum(p.grad is not None for p in trained), "of", len(trained), "parameters")


if __name__ == "__main__":
    main()
