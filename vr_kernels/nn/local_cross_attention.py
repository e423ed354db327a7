"""``LocalCrossAttention``: the module around ``vr_kernels.local_cross_attention``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vr_kernels.nn._cross_attention import ProjectedCrossAttention
from vr_kernels.nn._linear import compose, plain_linear
from vr_kernels.nn._sizes import level_widths
from vr_kernels.ops import local_cross_attention
from vr_kernels.ops._arguments import Arguments


class LocalCrossAttention(ProjectedCrossAttention):
    """Each token attends to its own window of several encoder levels (Vision Remember v2, §3.2, Eq. 2).

    ``out = W_o attention(W_q query, W_k f, W_v f)``, f the concatenated levels inside the token's window, optionally
    layer-normalised. The key and value projections run once a token, not once a feature (see
    ``vr_kernels.local_cross_attention``), so they are Parameters of this module and not Linear children; a
    parametrised, LoRA-adapted or tensor-subclass weight is used as it presents itself.

    Args:
        query_dim: width D_q of the tokens.
        feature_dims: width of each level, in the order in which ``forward`` gets them; an int for a single level.
        num_heads: h. head_dim: d; None is query_dim / h.
        out_dim: width of the output; None is query_dim.
        bias: biases on all four projections.
        feature_norm: LayerNorm of the features (eps 1e-6): "none", over "all" channels, or per "level".
        saliency_on: "value" (v1's Eq. 3) or "feature"; see ``vr_kernels.local_cross_attention``.
        backend: passed on to the operator.

    Raises:
        ValueError: sizes below one; no head_dim and heads that do not divide query_dim; an unknown feature_norm.
        TypeError: a size that is no int.

    >>> attention = LocalCrossAttention(64, (32, 32, 32), num_heads=4, feature_norm="level")
    >>> levels = [torch.randn(2, 6, 6, 32) for _ in range(3)]
    >>> attention(torch.randn(2, 3, 3, 64), levels).shape  # 3x3 tokens, windows of 2x2
    torch.Size([2, 3, 3, 64])
    """

    def forward(
        self,
        query: Tensor,
        features: Tensor | Sequence[Tensor],
        *,
        window_index: Tensor | None = None,
        saliency: Tensor | None = None,
        attention_bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Resample ``features`` at the tokens ``query``.

        Args:
            query: (B, n_h, n_w, D_q), or (N, D_q) with a ``window_index``.
            features: one tensor or one a level, (B, H, W, D_l) or (M, D_l), widths as ``feature_dims``.
            window_index: (N, K) int32 or int64, rows of features, -1 = absent; N is the number of tokens.
            saliency: (B, H, W) or (M,), multiplies the values without renormalisation; the query's dtype or float32.
            attention_bias: (h, K) or (N, h, K), added to the scaled scores; the query's dtype or float32. N is
                B*n_h*n_w in the grid form, K the features of a window.
            need_weights: whether to return the attention weights too.

        Returns:
            query's shape with out_dim channels; with ``need_weights`` also the weights (..., h, K), in its dtype.

        Raises:
            ValueError: sizes that do not fit; a window_index in the grid form, or none in the indexed form; on the CPU,
                rows out of range; a backend that is unknown or cannot run the call.
            TypeError: what is no tensor; a query in another dtype than the weights, or features in another than the
                query (autocast converts them); a saliency, attention_bias or window_index in a dtype that they may not
                have; a need_weights that is no bool.
        """
        Arguments("LocalCrossAttention").flag("need_weights", need_weights)
        result = local_cross_attention(
            self._queries(query),
            self._levels(features),
            self.key_weight,
            self.value_weight,
            num_heads=self.num_heads,
            window_index=window_index,
            key_bias=self.key_bias,
            value_bias=self.value_bias,
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            norm_eps=self.norm_eps,
            norm_groups=self.norm_groups,
            attention_bias=attention_bias,
            saliency=saliency,
            saliency_on=self.saliency_on,
            return_attention=need_weights,
            backend=self.backend,
        )
        if isinstance(result, tuple):
            return self.out_proj(result[0]), result[1]
        return self.out_proj(result)  # type: ignore[no-any-return]

    @classmethod
    def from_multihead_attention(
        cls, attention: nn.MultiheadAttention, feature_dims: int | Sequence[int] | None = None
    ) -> LocalCrossAttention:
        """The same function as a window resampler built on ``nn.MultiheadAttention``, with copies of its weights.

        Such a resampler calls ``attention(query (N, 1, E), windows (N, K, C), windows)``, or the transposes where it is
        not ``batch_first``: that layout is about N and K alone, and this module takes features unpartitioned.

        Args:
            attention: its kdim and vdim must be equal: keys and values are the same features.
            feature_dims: how kdim splits into levels; None is one level.

        Raises:
            ValueError: add_bias_kv or add_zero_attn; dropout while training; kdim other than vdim or feature_dims.
            TypeError: no ``nn.MultiheadAttention``, or one with a forward of its own, or whose out_proj has been
                replaced (adapted, quantised).
        """
        name = "LocalCrossAttention.from_multihead_attention"
        if not isinstance(attention, nn.MultiheadAttention):
            raise TypeError(
                f"{name}: attention is a {type(attention).__name__}; it must be a torch.nn.MultiheadAttention"
            )
        if type(attention).forward is not nn.MultiheadAttention.forward:  # quantizable: of other weights than it has
            raise TypeError(
                f"{name}: attention is a {type(attention).__name__} with a forward of its own; it must compute as "
                "torch.nn.MultiheadAttention does"
            )
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                f"{name}: attention was built with add_bias_kv or add_zero_attn; a window has no such extra key"
            )
        if attention.dropout > 0 and attention.training:
            raise ValueError(
                f"{name}: attention has dropout {attention.dropout} and is in training mode, and there is no dropout "
                "here; call attention.eval() first, or build it with dropout=0"
            )
        if attention.kdim != attention.vdim:
            raise ValueError(
                f"{name}: kdim is {attention.kdim}, vdim is {attention.vdim}; keys and values must be one input"
            )
        dims = (attention.kdim,) if feature_dims is None else feature_dims
        dims = level_widths(name, "feature_dims", dims)
        if sum(dims) != attention.kdim:
            raise ValueError(
                f"{name}: feature_dims is {dims}, kdim is {attention.kdim}; the levels' widths must add up to it"
            )
        out_proj = plain_linear(name, "attention.out_proj", attention.out_proj)

        if attention.in_proj_weight is not None:
            w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
        else:
            w_q, w_k, w_v = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        bias = attention.in_proj_bias is not None
        module = cls(
            attention.embed_dim, dims, attention.num_heads, bias=bias, device=w_q.device, dtype=w_q.dtype
        ).train(attention.training)
        pairs = [
            (module.query_proj.weight, w_q),
            (module.key_weight, w_k),
            (module.value_weight, w_v),
            (module.out_proj.weight, out_proj.weight),
        ]
        if bias:
            b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
            biases = (module.query_proj.bias, module.key_bias, module.value_bias, module.out_proj.bias)
            pairs += zip(biases, (b_q, b_k, b_v, out_proj.bias), strict=True)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter, source in pairs:
                parameter.copy_(source)
                parameter.requires_grad_(source.requires_grad)
        return module

    @torch.no_grad()
    def fold_(self, *, before: nn.Linear | None = None, after: nn.Linear | None = None) -> LocalCrossAttention:
        """Merge adjacent linear maps, for inference: the same function up to rounding, computed with less.

        The key bias goes (the softmax drops it), LayerNorm's gain goes into the key and value weights and its shift
        into the value bias. ``before`` and ``after`` are Linears that the model applies to the query and to the output
        (Vision Remember's expansion D_t -> C and contraction C -> D_t): they go into the query and output projections,
        and the caller drops them. Products are made in float64. State-dict keys change with what is merged away.

        Raises:
            TypeError: a projection that is not a plain ``nn.Linear`` or Parameter (adapted, parametrised, quantised,
                sharded): merge or gather it first. ValueError: before or after of another width.
        """
        name = "LocalCrossAttention.fold_"
        query_proj = plain_linear(name, "query_proj", self.query_proj)
        out_proj = plain_linear(name, "out_proj", self.out_proj)
        for attribute in ("key_weight", "value_weight", "value_bias", "norm_weight", "norm_bias"):
            value = getattr(self, attribute)
            if value is not None and type(value) is not nn.Parameter:
                raise TypeError(
                    f"{name}: {attribute} is a {type(value).__name__}; only a plain Parameter can be folded"
                )
        if before is not None:
            query_proj = compose(name, "before", plain_linear(name, "before", before), query_proj)
        if after is not None:
            out_proj = compose(name, "after", out_proj, plain_linear(name, "after", after))
        # Nothing has been changed so far, and nothing below can be refused.
        self.query_proj, self.query_dim = query_proj, query_proj.in_features
        self.out_proj, self.out_dim = out_proj, out_proj.out_features
        self.key_bias = None
        # With saliency on the feature LayerNorm's shift is scaled too, which no value bias expresses: it stays.
        if self.norm_weight is not None and self.saliency_on == "value":
            if self.norm_bias is not None:
                shift = self.value_weight.double() @ self.norm_bias.double()
                if self.value_bias is not None:
                    shift += self.value_bias.double()
                self.value_bias = nn.Parameter(shift.to(self.value_weight.dtype))
                self.norm_bias = None
            self.key_weight.mul_(self.norm_weight)
            self.value_weight.mul_(self.norm_weight)
            nn.init.ones_(self.norm_weight)
        return self
