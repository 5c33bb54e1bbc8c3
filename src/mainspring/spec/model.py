"""Model nouns: the decoder's configuration and the profile the planner reads."""

from mainspring.spec._spec import spec


@spec
class RopeScaling:
    """Llama 3.1's longer context: planes that turn less than `low` times in `original_context` turn `factor` times
    slower, those that turn more than `high` times as before, and those between in proportion."""

    factor: float
    low: float
    high: float
    original_context: int

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low < self.high or self.original_context < 1:
            raise ValueError(f"rope scaling wants factor >= 1 and 0 < low < high, got {self}")


@spec
class DecoderConfig:
    """A decoder-only transformer of the Llama/Qwen family.

    `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023); `qkv_bias` is Qwen2's, `qk_norm` is
    Qwen3's, `rope_scaling` Llama 3.1's. `head_dim` of 0 means `hidden // heads`.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    head_dim: int = 0
    rope_theta: float = 10000.0
    rms_eps: float = 1e-6
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if min(self.vocab, self.hidden, self.layers, self.heads, self.kv_heads, self.ffn, self.context) < 1:
            raise ValueError("vocab, hidden, layers, heads, kv_heads, ffn and context must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if not self.head_dim and self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.width % 2:
            raise ValueError(f"the width of a head ({self.width}) must be even: positions turn pairs")

    @property
    def width(self) -> int:
        """Dimension of one attention head."""
        return self.head_dim or self.hidden // self.heads


@spec
class BlockSpec:
    """`count` repetitions of one block: sizes per repetition, activations per token of one sequence.

    `flops_per_token` is one forward pass without attention's quadratic term, which is
    `attention_flops_per_token2` times the context length. `activation_bytes_per_token` is what backward keeps;
    `output_bytes_per_token` is what crosses a cut after the block, and after the last one it is the logits.
    """

    name: str
    count: int
    params: int
    flops_per_token: float
    attention_flops_per_token2: float
    activation_bytes_per_token: float
    output_bytes_per_token: float


@spec
class ModelSpec:
    """A model as the planner sees it: blocks in order, and what is shared.

    `element_bytes` is the width of an activation element that the blocks' byte figures were counted with; the planner
    scales them to the training precision.
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    seq_len: int
    tied_params: int = 0
    element_bytes: int = 4

    @property
    def params(self) -> int:
        """Trainable parameters, counting a shared one once."""
        return sum(block.count * block.params for block in self.blocks) - self.tied_params

    @property
    def flops_per_token(self) -> float:
        """One forward pass per token at `seq_len`, attention included."""
        return sum(
            block.count * (block.flops_per_token + block.attention_flops_per_token2 * self.seq_len)
            for block in self.blocks
        )
