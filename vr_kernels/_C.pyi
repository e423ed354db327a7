"""The native kernels. Pointers are addresses as integers, 0 for none; csrc tells the rest."""

from typing import TypedDict

# data, then the strides of batch, row, column, head and channel in elements, then the number of channels
_Level = tuple[int, int, int, int, int, int, int]

# data, stride of windows, stride of heads: a (windows, heads, width) buffer with unit inner stride
_Rows = tuple[int, int, int]

class LocalAttention:
    windows: int
    first_window: int
    heads: int
    kv_heads: int
    slots: int
    batch: int
    height: int
    width: int
    window_height: int
    window_width: int
    index: int
    index_is_64bit: bool
    scale: float
    attention_bias: int
    bias_stride_window: int
    bias_stride_head: int
    saliency: int
    norm_groups: int
    norm_eps: float
    norm_weight: int
    norm_bias: int
    threads: int
    query_dtype: int
    feature_dtype: int
    @property
    def keys(self) -> list[_Level]: ...
    @keys.setter
    def keys(self, levels: list[_Level]) -> None: ...
    @property
    def values(self) -> list[_Level]: ...
    @values.setter
    def values(self, levels: list[_Level]) -> None: ...
    def __init__(
        self,
        *,
        windows: int,
        first_window: int = 0,
        heads: int,
        kv_heads: int = 1,
        slots: int,
        batch: int,
        height: int = 1,
        width: int = 1,
        window_height: int = 0,
        window_width: int = 0,
        index: int = 0,
        index_is_64bit: bool = False,
        keys: list[_Level],
        values: list[_Level] = ...,
        query_dtype: int,
        feature_dtype: int,
        scale: float,
        attention_bias: int = 0,
        bias_stride_window: int = 0,
        bias_stride_head: int = 0,
        saliency: int = 0,
        norm_groups: int = 0,
        norm_eps: float = 1e-6,
        norm_weight: int = 0,
        norm_bias: int = 0,
        threads: int,
    ) -> None: ...

def local_attention_forward(
    problem: LocalAttention, query: _Rows, out: _Rows, attention: _Rows, lse: _Rows
) -> None: ...
def local_attention_backward(
    problem: LocalAttention,
    grad_out: _Rows,
    attention: _Rows,
    grad_attention: _Rows,
    grad_lse: _Rows,
    value_constant: _Rows,
    grad_scores: _Rows,
    grad_query: _Rows,
    pooled: _Rows,
    grad_saliency: int,
) -> None: ...
def local_attention_feature_gradient(
    problem: LocalAttention,
    query: _Rows,
    grad_out: _Rows,
    attention: _Rows,
    grad_scores: _Rows,
    grad_key: int,
    grad_value: int,
) -> None: ...

# data, its gradient (0: not wanted), height, width, then the strides of batch, row, column and head in elements
_SampledLevel = tuple[int, int, int, int, int, int, int, int]

class DeformableAttention:
    def __init__(
        self,
        *,
        batch: int,
        queries: int,
        heads: int,
        channels: int,
        points: int,
        levels: list[_SampledLevel],
        dtype: int,
        locations: int,
        weights: int,
        threads: int,
    ) -> None: ...

def deformable_attention_forward(problem: DeformableAttention, out: int) -> None: ...
def deformable_attention_backward(
    problem: DeformableAttention, grad_out: int, grad_locations: int, grad_weights: int
) -> None: ...

class TokenRows:
    def __init__(
        self,
        *,
        stream: int,
        stride_sample: int,
        stride_row: int,
        batch: int,
        length: int,
        width: int,
        dtype: int,
        rows: int = 0,
        images: int = 0,
        tokens: int = 0,
        sample_of_image: int = 0,
        norm_weight: int = 0,
        norm_eps: float = 0.0,
        threads: int,
    ) -> None: ...

TOKEN_ROWS_PER_PART: int

def index_fits(index: int, count: int, is_64bit: bool, low: int, high: int, distinct: bool) -> bool: ...
def text_guide(tokens: TokenRows, mask: int, guide: int, text_row: int) -> None: ...
def gather_tokens(tokens: TokenRows, guide: int, out: int, inverse_rms: int) -> None: ...
def gather_tokens_backward(
    tokens: TokenRows,
    grad_out: int,
    inverse_rms: int,
    text_row: int,
    grad_guide: int,
    grad_stream: int,
    grad_weight: int,
) -> None: ...
def scatter_add_tokens(tokens: TokenRows, update: int, out: int) -> None: ...

# data, then the strides of batch, row, column and channel in elements, then the number of channels
_PatchLevel = tuple[int, int, int, int, int, int]

def gather_patches(
    *,
    levels: list[_PatchLevel],
    patches: tuple[int, int],
    kernel: int,
    first: int,
    count: int,
    rows: int,
    item_bytes: int,
    threads: int,
) -> None: ...
def scatter_patches(
    *,
    levels: list[_PatchLevel],
    patches: tuple[int, int],
    kernel: int,
    first: int,
    count: int,
    rows: int,
    item_bytes: int,
    threads: int,
) -> None: ...

# Strides are of sequence, token, head and channel in elements.
def attention_importance(
    *,
    sequences: int,
    rows: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    bounds: int,
    query: int,
    key: int,
    key_strides: tuple[int, int, int, int],
    key_dtype: int,
    key_mask: int,
    scale: float,
    softmax: bool,
    weights: int,
    threads: int,
) -> None: ...
def received_forward(
    *,
    scores: int,
    heads: int,
    rows: int,
    columns: int,
    first_row: int,
    lse: int,
    lse_stride: int,
    threads: int,
    received: int,
    received_stride: int,
) -> None: ...
def received_backward(
    *,
    scores: int,
    heads: int,
    rows: int,
    columns: int,
    first_row: int,
    lse: int,
    lse_stride: int,
    threads: int,
    grad: int,
    grad_stride: int,
    total: int,
) -> None: ...

class _CpuFeatures(TypedDict, total=False):
    """The processor's own entries are there on x86-64 alone."""

    isa: str
    available: list[str]
    avx2: bool
    avx512: bool
    avx512_bf16: bool
    amx_bf16: bool

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    openmp: bool
    sanitizer: bool
    cuda: bool
    cuda_architectures: list[str]
    cuda_compiler: str

def cpu_features() -> _CpuFeatures: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def build_info() -> _BuildInfo: ...

# What follows is there only where build_info()["cuda"] is true.

# device, and the address of its cudaStream_t
_Stream = tuple[int, int]

# addresses of the readers of all feature rows, and of where those of each row begin
_Readers = tuple[int, int]

# addresses of the statistics of the feature rows, of gamma and of beta; 0 for none
_Norm = tuple[int, int, int]

def cuda_probe() -> str: ...
def cuda_local_attention_forward(
    problem: LocalAttention, query: _Rows, out: _Rows, attention: _Rows, lse: _Rows, stream: _Stream
) -> None: ...
def cuda_local_attention_backward(
    problem: LocalAttention,
    grad_out: _Rows,
    attention: _Rows,
    grad_attention: _Rows,
    grad_lse: _Rows,
    value_constant: _Rows,
    grad_scores: _Rows,
    grad_query: _Rows,
    pooled: _Rows,
    slot_products: _Rows,
    stream: _Stream,
) -> None: ...
def cuda_local_attention_feature_gradient(
    problem: LocalAttention,
    query: _Rows,
    grad_out: _Rows,
    attention: _Rows,
    grad_scores: _Rows,
    grad_key: int,
    grad_value: int,
    readers: _Readers,
    stream: _Stream,
) -> None: ...
def cuda_local_cross_attention_statistics(features: LocalAttention, statistics: int, stream: _Stream) -> None: ...
def cuda_local_cross_attention_scores(
    features: LocalAttention,
    norm: _Norm,
    x: _Rows,
    weight: _Rows,
    width: int,
    scores: _Rows,
    parts: int,
    part_stride: int,
    stream: _Stream,
) -> None: ...
def cuda_local_cross_attention_project(
    features: LocalAttention, norm: _Norm, a: _Rows, weight: _Rows, width: int, out: _Rows, stream: _Stream
) -> None: ...
def cuda_local_cross_attention_outer(
    features: LocalAttention, norm: _Norm, x: _Rows, a: _Rows, width: int, factors: int, out: _Rows, stream: _Stream
) -> None: ...
