"""`LazyDecoder`: a decoder that spends its layers on the next item alone.

OneRec-V2 (arXiv:2508.20900; METHODS B6) has no encoder: a history becomes keys and values by one
projection, and the layers run over `[BOS, s1, s2, ..]`, the codes of the item that is written. With
the sizes of the paper's 1B model (18 layers of width 1792, 14 heads) the weights of the layers and
outputs cost 19.0 GFLOPs a target, forward and backward; the paper states 18.89.

What the paper leaves open, and what is done here:

- the context is one vector an item, merged from the vectors of its codes as in `Decoder`'s
  `merged` shape, from a token table of its own, whose width may be small (`context_width`);
- cross-attention knows no order, so a learned vector of the event's place, counted back from the
  target, is added to it; `positions=0` leaves it out;
- self-attention has rotary positions and as many key-value heads as heads.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jaxrec.backbones import cost
from jaxrec.backbones.context_writer import ContextWriter, Pieces
from jaxrec.backbones.layers import Embedding, apply_module
from jaxrec.backbones.lazy_layers import Context, ContextProcessor, ContextShape
from jaxrec.backbones.mixture import Mixture
from jaxrec.types import Events, PyTree, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class LazyDecoder(ContextWriter):
    """The lazy decoder of OneRec-V2; obeys the Generator contract.

    Training needs rows with one target, the last event of the row (`TargetCentric`): `forward`
    answers for that event alone. The paper's loss is the mean over the levels
    (`NextToken(level_reduction="mean")`).

    Raises:
        ValueError: sizes that do not divide, unknown options, options that contradict.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    feedforward: int | None = None
    """Width of the SwiGLU; four times `width` by default, which gives the sizes of the paper."""
    kv_split: int = 1
    """`S_kv`: 2 where keys and values of the context differ, 1 where the values are the keys."""
    kv_layers: int = 1
    """`L_kv`: sets of keys and values; layer i reads set `i * kv_layers // layers`."""
    kv_heads: int | None = None
    """`G_kv`: key-value heads of the context; as many as `heads` by default."""
    context_width: int | None = None
    """Width of the vectors of the history's codes (the paper: some `width` / 20); `width` by
    default."""
    positions: int = 512
    """Rows of the table of places in the history, the last event first; events further back share
    the last row. 0 for none: then the history is a set. Ours, the paper is silent."""
    item_buckets: int = 0
    """Rows of a table that is added per item of the history (`item % item_buckets`), 0 for none."""
    mixture: Mixture | None = None
    """Experts in place of the SwiGLU of the deeper layers; None for none."""
    dense_layers: int = 2
    """Layers in front that keep their SwiGLU; without mixture all do."""
    dropout: float = 0.1
    """On the inputs and on every residual branch."""
    rope_base: float = 1e4
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, a third more arithmetic."""
    unroll: int = 1
    """Layers per iteration of the scan over layers."""
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms, softmax and logits stay float32."""
    initial_scale: float = 0.02
    attention: str = "xla"
    """Implementation of attention, see `jaxrec.backbones.attention.IMPLEMENTATIONS`."""

    widening: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.context  # its own checks
        if self.heads % self.context.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} must divide heads={self.heads}; "
                "use equal numbers for plain multi-head attention."
            )
        if self.kv_layers > self.layers:
            raise ValueError(
                f"kv_layers={self.kv_layers} exceeds layers={self.layers}: nobody would read the "
                "last of them; use at most one set of keys and values a layer."
            )
        if self.mixture is not None and not 0 <= self.dense_layers < self.layers:
            raise ValueError(
                f"dense_layers={self.dense_layers} of layers={self.layers} leaves no layer for the "
                "mixture; choose fewer, or mixture=None."
            )

    @property
    def context(self) -> ContextShape:
        """How the history becomes keys and values."""
        return ContextShape(
            width=self.width if self.context_width is None else self.context_width,
            split=self.kv_split,
            groups=self.kv_layers,
            kv_heads=self.heads if self.kv_heads is None else self.kv_heads,
            head_size=self.width // self.heads,
            positions=self.positions,
            item_buckets=self.item_buckets,
        )

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        width, context = self.width, self.context
        tables = space.vocabulary * (width + context.width)
        tables += (self.positions + self.item_buckets) * context.width
        read = context.width * (1 + context.width) + context.chunks * context.channels * (
            context.width + 1
        )
        attentions = 6 * width**2 + 3 * width  # of both, and the three norms of a layer
        dense = 3 * width * self.stack.feedforward
        layers = self.layers * attentions + self.dense * dense
        if self.mixture is not None:
            layers += (self.layers - self.dense) * self.mixture.parameters(width)
        return tables + read + layers + space.levels * width * (space.width + 1)

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward, by formula; of a mixture, what its chosen experts cost.

        Args:
            space: the token space.
            rows: rows of the batch.
            length: events of a row: `length - 1` of history, and the target.
        """
        width, context, levels, read = self.width, self.context, space.levels, length - 1
        history = read * context.width * (context.width + context.chunks * context.channels)
        pairs = 2 * width * (levels + read)  # scores and mixes, of both attentions
        layers = self.layers * (6 * width**2 + pairs)
        layers += self.dense * 3 * width * self.stack.feedforward
        if self.mixture is not None:
            layers += (self.layers - self.dense) * self.mixture.active_weights(width)
        products = history + levels * (layers + width * space.width)
        return cost.BACKWARD * 2.0 * rows * products

    @property
    def context_groups(self) -> int:
        """Sets of keys and values that the layers take turns with."""
        return self.kv_layers

    @property
    def context_heads(self) -> int:
        """Heads of the context's keys and values."""
        return self.context.kv_heads

    @property
    def dense(self) -> int:
        """Layers in front that have a SwiGLU."""
        return self.layers if self.mixture is None else self.dense_layers

    def read(
        self,
        params: PyTree,
        tables: Tables,
        history: Events,
        exists: Bool[Array, "b t"],
        place: Int32[Array, "b t"],
        space: TokenSpace,
        key: Array | None = None,
    ) -> Context:
        """Keys and values of histories: one projection of the items' vectors."""
        codes = jnp.take(tables.codes, history.item, axis=0, mode="clip")
        tokens = jnp.moveaxis(codes + jnp.asarray(space.offsets, codes.dtype), -1, 0)
        vectors = apply_module(self._context_tokens(space), params["context_tokens"], tokens)
        total = sum(vectors[level] for level in range(space.levels))
        processor = ContextProcessor(self.stack, self.context)
        return apply_module(processor, params["context"], total, history.item, place, exists, key)

    def context_pieces(self, space: TokenSpace) -> Pieces:
        """The modules that `read` needs."""
        total = jnp.zeros((1, 1, self.context.width), self.dtype)
        index, here = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return {
            "context_tokens": (self._context_tokens(space), (index,)),
            "context": (ContextProcessor(self.stack, self.context), (total, index, index, here)),
        }

    def _context_tokens(self, space: TokenSpace) -> Embedding:
        narrow = dataclasses.replace(self.stack, width=self.context.width)
        return Embedding(narrow, space.vocabulary)
