"""Model nouns: the decoder's configuration and the profile the planner reads."""

from typing import Literal

from mainspring.spec._spec import spec

RowsKind = Literal["whole", "partial", "rows", "width", "experts"]


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


OUTER = frozenset({"embedding", "stem", "head", "rest"})  # what profiles call the parts round the blocks


@spec
class Rows:
    """Parameters of a block whose first dimension has `count` entries, in all `width` values wide.

    Tensor parallelism divides the `rows` of some, the `width` of others; of `experts` expert parallelism divides the
    rows. Each rank has the rest, and of `partial` finds a part of the gradient only. What is not `trained` is frozen:
    it has neither gradients nor optimiser state.
    """

    count: int
    width: int
    kind: RowsKind = "whole"
    trained: bool = True

    @property
    def params(self) -> int:
        """How many parameters these are."""
        return self.count * self.width


@spec
class BlockSpec:
    """`count` repetitions of one block: sizes per repetition, activations per token of one sequence.

    `flops_per_token` is one forward pass without attention's quadratic term, which is
    `attention_flops_per_token2` times the context length. `activation_bytes_per_token` is what backward keeps;
    `output_bytes_per_token` is what crosses a cut after the block, and after the last one it is the logits.

    Tensor parallelism divides `split_params` of the parameters, and saved bytes of which it divides
    `split_activation_bytes_per_token` by itself and the rest only along the sequence. Its degree must divide every
    size of `divisions`, named pairs such as `("heads", 32)`; empty means that the block must stay whole. `reductions`
    is how often the residual stream is added up over its ranks in forward and in backward: (2, 2) for attention and
    feed-forward, (1, 0) for an embedding, (0, 1) for a head. Each rank holds `partial_params` whole but finds a part of
    their gradient: norms of queries and keys.

    `selective_bytes_per_token` is what is kept when all but matrix products and attention is computed again, 0 where
    that is not known. `kv_bytes_per_token` are keys and values, which context parallelism passes round; 0 where the
    block does not look along the sequence. `expert_params` of the parameters are in `experts`, `experts_per_token` of
    which work on each token. `rows` are the parameters once more, by how they can be cut; empty where only their number
    is known. `along_sequence` says that what tensor parallelism does not divide of it works on each token by itself, so
    that sequence parallelism may cut it.
    """

    name: str
    count: int
    params: int
    flops_per_token: float
    attention_flops_per_token2: float
    activation_bytes_per_token: float
    output_bytes_per_token: float
    divisions: tuple[tuple[str, int], ...] = ()
    split_params: int = 0
    split_activation_bytes_per_token: float = 0.0
    reductions: tuple[int, int] = (0, 0)
    partial_params: int = 0
    selective_bytes_per_token: float = 0.0
    kv_bytes_per_token: float = 0.0
    experts: int = 0
    experts_per_token: int = 0
    expert_params: int = 0
    rows: tuple[Rows, ...] = ()
    along_sequence: bool = True

    @property
    def inner(self) -> bool:
        """Whether this is one of the blocks, alone in its kind or not, and not what lies round them."""
        return self.name not in OUTER

    @property
    def trained_share(self) -> float:
        """Which part of the parameters is not frozen."""
        frozen = sum(rows.params for rows in self.rows if not rows.trained)
        return 1 - frozen / self.params if frozen else 1.0


@spec
class ModelSpec:
    """A model as the planner sees it: blocks in order, and what is shared.

    `element_bytes` is the width of an activation element that the blocks' byte figures were counted with; the planner
    scales them to the training precision. In a `chain` each block needs nothing but the output of the one before, so
    that a pipeline may cut anywhere between them; `unchained` says why it is none. `tied_rows` are the `tied_params`,
    which several blocks count, by how they can be cut. `optimizer_bytes` are those of the optimiser's state for each
    trained parameter, 8 for Adam's two moments. `unshared` says why ranks cannot have a part of each sequence.
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    seq_len: int
    tied_params: int = 0
    element_bytes: int = 4
    chain: bool = False
    tied_rows: tuple[Rows, ...] = ()
    unchained: str = ""
    optimizer_bytes: float = 8.0
    unshared: str = ""

    @property
    def params(self) -> int:
        """All parameters, frozen ones too, a shared one once."""
        return sum(block.count * block.params for block in self.blocks) - self.tied_params

    def differentiated(self, block: BlockSpec) -> bool:
        """Whether backward runs through `block` of this model: not where all before it in a chain is frozen."""
        return not self.chain or block is not self.blocks[0] or block.trained_share > 0

    @property
    def flops_per_token(self) -> float:
        """One forward pass per token at `seq_len`, attention included."""
        return sum(
            block.count * (block.flops_per_token + block.attention_flops_per_token2 * self.seq_len)
            for block in self.blocks
        )


@spec
class MoeConfig:
    """A decoder whose feed-forwards are mixtures of `experts`, `experts_per_token` of which see each token.

    `balance_rate` is how much an expert's chance moves after a step in which it saw more or fewer tokens than the mean
    (Wang et al. 2024, without an auxiliary loss). Every `move_every` steps the experts are spread anew over the ranks
    that share them, so that each has as many tokens to work on; 0 leaves them where they are.
    """

    decoder: DecoderConfig
    experts: int
    experts_per_token: int
    expert_ffn: int
    balance_rate: float = 0.0
    move_every: int = 0

    def __post_init__(self) -> None:
        for name in ("experts", "experts_per_token", "expert_ffn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) is above experts ({self.experts})")
