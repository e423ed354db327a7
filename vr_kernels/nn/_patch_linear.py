"""``PatchLinear``, the layer that token fusion is made of, and how its weights come from either stored layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vr_kernels.nn._sizes import check_positive
from vr_kernels.ops import patch_linear


class PatchLinear(nn.Module):
    """A k x k convolution of stride k over one or several levels, channels last, with bias and an optional GELU.

    The weight is that of ``nn.Conv2d(in_channels, out_channels, k, stride=k)``, flattened: (O, C*k*k), channel-major.

    Args:
        in_channels: C, of all levels together. out_channels: O. kernel_size: k.
        activation: None or "gelu". backend: passed on to ``vr_kernels.patch_linear``.

    >>> PatchLinear(64, 32, kernel_size=2, activation="gelu")(torch.randn(1, 4, 4, 64)).shape
    torch.Size([1, 2, 2, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        activation: str | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("PatchLinear", in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.activation, self.backend = activation, backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels * kernel_size**2, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``nn.Conv2d`` and ``nn.Linear``: uniform within 1/sqrt(C*k*k), weight and bias."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Levels (B, H, W, D_l) -> (B, H/k, W/k, O)."""
        return patch_linear(
            features,
            self.weight,
            self.bias,
            kernel_size=self.kernel_size,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, activation={self.activation!r}"
        )


@torch.no_grad()
def load_layers(
    operation: str, layers: Sequence[PatchLinear], state_dict: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Copy into ``layers``, in order, the weights and biases of a state dict whose names may be any.

    Each weight may have a convolution's layout (O, C, k, k) or be flattened, (O, C*k*k) and channel-major as the
    convolution's own. Everything is checked before anything is copied.

    Raises:
        ValueError: more or fewer layers than there are, another shape, a missing bias, or something that is neither
            weight nor bias.
    """
    entries = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    stems = [name.removesuffix("weight") for name in entries if name.endswith("weight")]
    strange = [name for name in entries if name.removesuffix("weight").removesuffix("bias") not in stems]
    if strange:
        raise ValueError(f"{operation}: {prefix + strange[0]} is neither the weight of a layer nor its bias")
    if len(stems) != len(layers):
        raise ValueError(
            f"{operation}: the state dict has {len(stems)} weights under {prefix!r}; this module has {len(layers)} "
            "layers"
        )
    copies: list[tuple[Tensor, Tensor]] = []
    for stem, layer in zip(stems, layers, strict=True):
        weight, bias = entries[f"{stem}weight"], entries.get(f"{stem}bias")
        flat = tuple(layer.weight.shape)
        convolution = (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)
        if tuple(weight.shape) not in (flat, convolution):
            raise ValueError(
                f"{operation}: {prefix}{stem}weight has shape {tuple(weight.shape)}; it must be {convolution} or {flat}"
            )
        if bias is None or tuple(bias.shape) != (layer.out_channels,):
            got = "is missing" if bias is None else f"has shape {tuple(bias.shape)}"
            raise ValueError(f"{operation}: {prefix}{stem}bias {got}; it must be {(layer.out_channels,)}")
        copies += [(layer.weight, weight.reshape(flat)), (layer.bias, bias)]
    for target, source in copies:
        target.copy_(source)
