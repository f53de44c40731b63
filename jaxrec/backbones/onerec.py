"""`OneRec`: an encoder of several pathways through a history, and a decoder of the next item.

OneRec (arXiv:2506.13695; METHODS B5). The encoder reads one token of the user, the newest events,
the newest events that the user liked, and the whole history through learned queries; the decoder
writes the codes of the next item, with experts in place of its feed-forwards where `mixture` says
so. What the paper leaves open, and what is done here:

- an item is the sum of its code vectors, from the table that the decoder reads too (the paper gives
  video and author tables of their own, which codes stand for);
- ages are powers of two of seconds before the newest event; actions have vectors, and which of them
  are likes is named (`positive_actions`);
- the printed equations of the decoder show no norm before its attentions; `attention_norms=False`
  is that, the default is the usual norm.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jaxrec.backbones import cost
from jaxrec.backbones.context_writer import ContextWriter, Pieces
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.layers import Embedding, Stack, apply_module
from jaxrec.backbones.lazy_layers import Arrangement, Context
from jaxrec.backbones.mixture import Mixture
from jaxrec.backbones.onerec_layers import (
    AGES,
    CrossKeys,
    DescribeEvents,
    Encoder,
    EventFeatures,
    Queries,
    newest,
)
from jaxrec.types import Events, PyTree, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class OneRec(ContextWriter):
    """OneRec's encoder and decoder; obeys the Generator contract.

    Training needs rows with one target, the last event of the row (`TargetCentric`): `forward`
    answers for that event alone. The paper's loss is the sum over the levels.

    Raises:
        ValueError: sizes that do not divide, unknown options, or no pathway.
    """

    layers: int = 4
    """Layers of the decoder."""
    encoder_layers: int | None = None
    """Layers of the encoder; as many as `layers` by default."""
    width: int = 128
    heads: int = 4
    feedforward: int | None = None
    """Width of the SwiGLUs; twice `width` by default, as in the published sizes."""
    short: int = 20
    """Newest events that the encoder reads one by one; 0 for none."""
    positive: int = 256
    """Newest events of `positive_actions` that it reads one by one; 0 for none."""
    positive_actions: tuple[int, ...] = (0,)
    """Actions that are likes; a log of one kind of event has action 0 everywhere."""
    queries: int = 128
    """Learned queries that read the whole history; 0 for none."""
    query_layers: int = 2
    user_buckets: int = 0
    """Rows of the users' table, by hash; 0 for no token of the user."""
    actions: int = 8
    """Kinds of events that have vectors; later kinds share the last one."""
    feature_width: int = 16
    """Width of the vectors of ages and actions."""
    mixture: Mixture | None = None
    """Experts in place of the SwiGLU of the decoder's layers; None for none."""
    attention_norms: bool = True
    """Norms before the decoder's attentions; False as the paper prints it."""
    dropout: float = 0.1
    """On inputs and on every residual branch."""
    rope_base: float = 1e4
    remat: bool = False
    """Recompute each layer in the backward pass."""
    unroll: int = 1
    """Layers an iteration of the scans over layers."""
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms, softmax and logits stay float32."""
    initial_scale: float = 0.02
    attention: str = "xla"
    """Implementation of attention, see `jaxrec.backbones.attention.IMPLEMENTATIONS`."""

    widening: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.short, self.positive, self.queries, self.user_buckets)
        if min(sizes) < 0 or not any(sizes):
            raise ValueError(
                f"short={self.short}, positive={self.positive}, queries={self.queries} and "
                f"user_buckets={self.user_buckets} must not be negative, and not all 0."
            )
        if self.positive and not self.positive_actions:
            raise ValueError(
                "positive_actions=() leaves the pathway of liked events empty; set positive=0."
            )
        if min(self.actions, self.feature_width, self.query_layers) < 1:
            raise ValueError(
                f"actions={self.actions}, feature_width={self.feature_width} and "
                f"query_layers={self.query_layers} must be at least 1."
            )
        _ = self.encoder  # its own checks

    @property
    def encoder(self) -> Stack:
        """Shape of the encoder's layers."""
        layers = self.layers if self.encoder_layers is None else self.encoder_layers
        return dataclasses.replace(self.stack, layers=layers)

    @property
    def tokens(self) -> int:
        """Tokens that the encoder reads."""
        return bool(self.user_buckets) + self.short + self.positive + self.queries

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        width, features = self.width, self.feature_width
        swiglu = 3 * width * self.stack.feedforward
        tables = space.vocabulary * width + self.user_buckets * width
        described = (AGES + self.actions) * features + (width + 2 * features) * width
        described += width + width**2
        described *= (self.short > 0) + (self.positive > 0) + (self.queries > 0)
        block = 4 * width**2 + swiglu + 2 * width
        queries = self.queries * width + self.query_layers * block + width if self.queries else 0
        encoder = self.tokens * width + self.encoder.layers * block + width
        decoder = self.layers * (8 * width**2 + 3 * width)
        inner = swiglu if self.mixture is None else self.mixture.parameters(width)
        if not self.attention_norms:
            decoder -= self.layers * 2 * width
        head = space.levels * width * (space.width + 1)
        return tables + described + queries + encoder + decoder + self.layers * inner + head

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward, by formula; of a mixture, what its chosen experts cost.

        Args:
            space: the token space.
            rows: rows of the batch.
            length: events of a row: `length - 1` of history, and the target.
        """
        width, read, levels = self.width, length - 1, space.levels
        swiglu = 3 * width * self.stack.feedforward
        describe = (width + 2 * self.feature_width) * width + width**2
        events = (self.short + self.positive + (read if self.queries else 0)) * describe
        asked = 2 * width**2 * (read + self.queries) + self.queries * (swiglu + 2 * read * width)
        asked = self.query_layers * asked if self.queries else 0
        block = 4 * width**2 + swiglu + 2 * self.tokens * width
        encoder = self.encoder.layers * self.tokens * block
        cross = self.layers * self.tokens * 2 * width**2
        inner = swiglu if self.mixture is None else self.mixture.active_weights(width)
        own = self.layers * (6 * width**2 + inner + 2 * width * (levels + self.tokens))
        decoder = levels * (own + width * space.width)
        return cost.BACKWARD * 2.0 * rows * (events + asked + encoder + cross + decoder)

    @property
    def context_groups(self) -> int:
        """Every layer has keys and values of its own."""
        return self.layers

    @property
    def context_heads(self) -> int:
        """Heads of the context's keys and values."""
        return self.heads

    @property
    def dense(self) -> int:
        """All layers have the mixture, or none has."""
        return self.layers if self.mixture is None else 0

    @property
    def arrangement(self) -> Arrangement:
        """How a block of the decoder is put together."""
        return Arrangement(self_first=True, attention_norms=self.attention_norms)

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
        """Keys and values of histories: the states of the encoder, projected for every layer.

        Order is told by ages and by the encoder's positions; `place` is not read.
        """
        del place
        x, there = self._pathways(params, tables, history, exists, space)
        layer_keys = None
        if key is not None:
            input_key, *layer_keys = jax.random.split(key, self.encoder.layers + 1)
            x = drop(x, draw_kept(input_key, x.shape, self.dropout), self.dropout)
            layer_keys = jnp.stack(layer_keys)
        encoder = Encoder(self.encoder)
        states = apply_module(encoder, params["encoder"], x, there, layer_keys)
        return Context(*apply_module(CrossKeys(self.stack), params["cross"], states), there)

    def _pathways(
        self,
        params: PyTree,
        tables: Tables,
        history: Events,
        exists: Bool[Array, "b t"],
        space: TokenSpace,
    ) -> tuple[Array, Bool[Array, "b s"]]:
        """Tokens of all pathways side by side, and which of them are there."""
        events = self._features(params, tables, history, exists, space)
        parts = []
        if self.user_buckets:
            parts.append(self._user(params, history, exists))
        liked = exists & jnp.isin(events.action, jnp.asarray(self.positive_actions))
        for name, count, chosen in (
            ("short", self.short, exists),
            ("positive", self.positive, liked),
        ):
            if count:
                picked = events.take(*newest(chosen, count))
                described = apply_module(self._describe(), params[f"describe_{name}"], picked)
                parts.append((described, picked.exists))
        if self.queries:
            described = apply_module(self._describe(), params["describe_all"], events)
            asked = apply_module(self._queries(), params["queries"], described, exists)
            parts.append((asked, jnp.ones(asked.shape[:2], bool)))
        tokens, there = zip(*parts)
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(there, axis=1)

    def _features(
        self, params: PyTree, tables: Tables, history: Events, exists: Array, space: TokenSpace
    ) -> EventFeatures:
        codes = jnp.take(tables.codes, history.item, axis=0, mode="clip")
        tokens = codes + jnp.asarray(space.offsets, codes.dtype)
        table = Embedding(self.stack, space.vocabulary)
        vector = jnp.sum(apply_module(table, params["tokens"], tokens), axis=2)
        # Padding holds any time.
        latest = jnp.max(jnp.where(exists, history.time, 0), axis=1, keepdims=True)
        age = jnp.where(exists, latest - history.time, 0)
        return EventFeatures(vector, age, history.action, exists)

    def _user(self, params: PyTree, history: Events, exists: Array) -> tuple[Array, Array]:
        """The user's token; a row without history, or of an unknown user, has none."""
        user = jnp.full(exists.shape, -1) if history.user is None else history.user
        user = jnp.max(jnp.where(exists, user, -1), axis=1, keepdims=True)
        table = Embedding(self.stack, self.user_buckets)
        return apply_module(table, params["users"], user % self.user_buckets), user >= 0

    def _describe(self) -> DescribeEvents:
        return DescribeEvents(self.stack, self.actions, self.feature_width)

    def _queries(self) -> Queries:
        return Queries(dataclasses.replace(self.stack, layers=self.query_layers), self.queries)

    def context_pieces(self, space: TokenSpace) -> Pieces:
        """The modules that `read` needs."""
        del space
        index, here = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        state = jnp.zeros((1, 1, self.width), self.dtype)
        events = EventFeatures(state, index, index, here)
        pathways = (("short", self.short), ("positive", self.positive), ("all", self.queries))
        pieces: Pieces = {
            f"describe_{name}": (self._describe(), (events,)) for name, count in pathways if count
        }
        if self.user_buckets:
            pieces["users"] = (Embedding(self.stack, self.user_buckets), (index,))
        if self.queries:
            pieces["queries"] = (self._queries(), (state, here))
        tokens = jnp.zeros((1, self.tokens, self.width), self.dtype)
        pieces["encoder"] = (Encoder(self.encoder), (tokens, jnp.ones((1, self.tokens), bool)))
        pieces["cross"] = (CrossKeys(self.stack), (state,))
        return pieces
