"""`T5`: an encoder that reads a history of codes and a decoder that writes the next item's.

The generator of TIGER (Rajput et al., arXiv:2305.05065) on the network of Raffel et al.
(arXiv:1910.10683; METHODS B1). The encoder reads `[user] c_11 .. c_1L c_21 .. c_tL`, oldest item
first; the decoder reads BOS and the codes written so far. There is no end token, since every item
has as many codes.

Three choices that reproductions make differently:

- the decoder starts with BOS, a row of its own (Hugging Face starts with PAD);
- probabilities are normalised over the codes of the level; `softmax="vocabulary"` is Hugging
  Face's way, over all tokens, so that part of the mass goes to codes that cannot stand there (the
  order of the codes is the same);
- with TIGER's sizes the network has 4.85 million parameters, not the 13 that the paper states.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.backbones import cost
from jaxrec.backbones.heads import codes_exist, level_logits
from jaxrec.backbones.layers import apply_module, logical_axes, normal, project, unbox
from jaxrec.backbones.t5_layers import (
    Decoder,
    Encoder,
    History,
    KeyValues,
    T5Shape,
    turn_history,
    write_token,
)
from jaxrec.types import SPECIAL_TOKENS, Events, PyTree, Tables, TokenSpace

BOS = SPECIAL_TOKENS.index("BOS")
SOFTMAXES = ("level", "vocabulary")


class T5Cache(NamedTuple):
    """What `step` needs."""

    history: tuple[History, ...]
    """Cross-attention's keys and values of every layer, shared by all beams of a row."""
    exists: Bool[Array, "b s"]
    """Which of them exist."""
    slots: tuple[KeyValues, ...]
    """Self-attention's keys and values of what each beam wrote, `[b w l h d]`, of every layer."""


@dataclasses.dataclass(frozen=True)
class T5:
    """T5 over semantic IDs; obeys the Generator contract. The defaults are TIGER's sizes.

    Training needs rows with one target, the last event of the row (`TargetCentric`): `forward`
    answers for that event alone.

    Raises:
        ValueError: a size that is not positive, or an unknown option.
    """

    layers: int = 4
    """Layers of the encoder."""
    decoder_layers: int | None = None
    """Layers of the decoder; as many as `layers` by default."""
    width: int = 128
    heads: int = 6
    head_size: int = 64
    """Size of a head; `heads * head_size` need not be `width`."""
    feedforward: int = 1024
    gated: bool = False
    """Gated GELU (T5 v1.1) instead of ReLU (v1.0)."""
    tied: bool = True
    """Output from the token table, states divided by sqrt(width) (v1.0), or matrices of its own
    (v1.1)."""
    softmax: str = "level"
    """What probabilities are normalised over: the codes of the `level`, or the whole `vocabulary`
    (every token; without `tied`, the codes of all levels). Then `forward` and `step` give
    log-probabilities, for `NextToken(normalised=True)` and decoders with `mask="as_given"`."""
    dropout: float = 0.1
    """On inputs and outputs of both stacks and on every residual branch."""
    inner_dropout: bool = True
    """Also on attention probabilities and inside the feed-forward network, as T5 has it."""
    user_buckets: int = 0
    """User tokens in front of the history, by hash (TIGER: 2000); 0 for none, which GRID found
    best. Unknown users have none."""
    separator: bool = False
    """A token after every item of the history (GRID)."""
    distance_buckets: int = 32
    """Rows of the table of relative position biases."""
    max_distance: int = 128
    """Distance in tokens beyond which all distances are one."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, a third more arithmetic."""
    unroll: int = 1
    """Layers per iteration of the scans over layers."""
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms, softmax and logits stay float32."""
    initial_factor: float = 1.0
    """Factor of all initial scales, which are Mesh TensorFlow's."""

    answers_last_only: ClassVar[bool] = True
    """`forward` answers for the last event of a row: the feed must put the targets there."""

    def __post_init__(self) -> None:
        if self.softmax not in SOFTMAXES:
            raise ValueError(
                f"softmax={self.softmax!r} is unknown; choose one of {', '.join(SOFTMAXES)}."
            )
        if self.user_buckets < 0:
            raise ValueError(f"user_buckets={self.user_buckets} must be 0 (none) or more.")
        _ = self.encoder, self.decoder  # their own checks

    @property
    def normalised(self) -> bool:
        """Whether `forward` and `step` give log-probabilities, not logits."""
        return self.softmax == "vocabulary"

    @property
    def encoder(self) -> T5Shape:
        """Shape of the encoder's stack."""
        same = {field.name for field in dataclasses.fields(T5Shape)}
        return T5Shape(**{name: getattr(self, name) for name in same})

    @property
    def decoder(self) -> T5Shape:
        """Shape of the decoder's stack."""
        layers = self.layers if self.decoder_layers is None else self.decoder_layers
        return dataclasses.replace(self.encoder, layers=layers)

    def tokens(self, space: TokenSpace) -> int:
        """Rows of the token table: the token space, then users, then the separator."""
        return space.vocabulary + self.user_buckets + int(self.separator)

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        attention, feedforward = self._weights
        encoder = self.layers * (attention + feedforward + 2 * self.width)
        decoder = self.decoder.layers * (2 * attention + feedforward + 3 * self.width)
        shared = 2 * (self.distance_buckets * self.heads + self.width)  # biases, final norms
        output = 0 if self.tied else space.levels * self.width * space.width
        return self.tokens(space) * self.width + encoder + decoder + shared + output

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward, by formula.

        Args:
            space: the token space.
            rows: rows of the batch.
            length: events of a row: `length - 1` of history, and the target.
        """
        attention, feedforward = self._weights
        inner, levels = self.heads * self.head_size, space.levels
        read = (length - 1) * (levels + self.separator) + bool(self.user_buckets)
        encoder = read * (attention + feedforward + 2 * read * inner)
        cross = read * 2 * self.width * inner  # keys and values of the history
        own = attention + 2 * self.width * inner + feedforward
        decoder = cross + levels * (own + 2 * levels * inner + 2 * read * inner)
        output = levels * self.width * space.width
        products = self.layers * encoder + self.decoder.layers * decoder + output
        return cost.BACKWARD * 2.0 * rows * products

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters: nested dictionaries of float32 arrays, with Mesh TensorFlow's scales.

        Normal; token table 1, queries (width head_size)^-1/2, everything else one over the square
        root of the width it reads. Matrices of an untied output, too, as in T5X: with Hugging
        Face's scale of 1 the first logits would differ by some sqrt(width).
        """
        return _init(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter: the tree of `init` with a tuple at each leaf."""
        return logical_axes(jax.eval_shape(lambda: self._boxed(jax.random.key(0), space)))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b 1 l k"]:
        """Teacher-forced logits of the codes of the last event of each row.

        The logits at level `l` know the events of the same segment before it and its own codes
        `0..l-1`. Padding and other segments have no influence.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: rows whose last column is the target.
            space: the token space of the codes.
            key: of the dropout; None switches it off.

        Returns:
            float32 logits of one event per row; codes beyond the size of a level get -1e9.
        """
        encoder_keys, decoder_keys = self._dropout_keys(key)
        segment, item = jnp.asarray(batch.segment), jnp.asarray(batch.item)
        exists = (segment[:, :-1] == segment[:, -1:]) & (segment[:, :-1] > 0)
        user = None if batch.user is None else jnp.asarray(batch.user)[:, -1]
        states, exists = self._read(params, tables, item[:, :-1], exists, user, space, encoder_keys)
        target = jnp.take(tables.codes, item[:, -1], axis=0, mode="clip")
        written = (target + jnp.asarray(space.offsets, target.dtype))[:, :-1]
        start = jnp.full((item.shape[0], 1), BOS, written.dtype)
        x = self._vectors(params, jnp.concatenate([start, written], axis=1))
        x = apply_module(
            Decoder(self.decoder), params["decoder"], x, states, exists, keys=decoder_keys
        )
        logits = self._logits(params, jnp.swapaxes(x, 0, 1)[:, :, None], space)
        return jnp.moveaxis(logits, 0, 2)

    def prefill(self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace) -> T5Cache:
        """Reads one history per row, for `step` to continue with the next event.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: segment 1 or 0, padding on one side; a row of padding is an empty history.
            space: the token space of the codes.

        Returns:
            A cache of one beam per row.
        """
        item, exists, user = jnp.asarray(batch.item), jnp.asarray(batch.segment > 0), None
        if batch.user is not None:
            user = jnp.max(jnp.where(exists, batch.user, -1), axis=1)
        states, exists = self._read(params, tables, item, exists, user, space)
        kernels = params["decoder"]["blocks"]["cross_attention"]
        history = tuple(
            turn_history(project(states, keys), project(states, values))
            for keys, values in zip(kernels["key"], kernels["value"])
        )
        shape = (states.shape[0], 1, space.levels, self.heads, self.head_size)
        empty = jnp.zeros(shape, states.dtype)
        return T5Cache(history, exists, (KeyValues(empty, empty),) * self.decoder.layers)

    def step(
        self,
        params: PyTree,
        cache: T5Cache,
        codes: Int32[Array, "b w"],
        parents: Int32[Array, "b w"],
        level: int | Int32[Array, ""],
        space: TokenSpace,
    ) -> tuple[Float[Array, "b w k"], T5Cache]:
        """Logits of the codes at `level` for every beam.

        Args:
            params: from `init`.
            cache: from `prefill` or the step before.
            codes: codes that the beams chose at `level - 1`; ignored at level 0.
            parents: which beam of the cache each beam continues.
            level: 0 as a Python integer; later levels may be traced.
            space: the token space of the codes.

        Returns:
            Logits, and the cache of the new beams.
        """
        if not isinstance(level, jax.Array) and int(level) == 0:
            tokens = jnp.full_like(codes, BOS)
        else:
            tokens = jnp.asarray(space.offsets, codes.dtype)[level - 1] + codes
        x, slots = write_token(
            self.decoder,
            params["decoder"],
            self._vectors(params, tokens),
            cache.history,
            cache.exists,
            cache.slots,
            level,
            parents,
        )
        return self._logits(params, x, space, level), cache._replace(slots=slots)

    @property
    def _weights(self) -> tuple[int, int]:
        """Weights of one attention and of one feed-forward network."""
        attention = 4 * self.width * self.heads * self.head_size
        return attention, (3 if self.gated else 2) * self.width * self.feedforward

    def _read(
        self,
        params: PyTree,
        tables: Tables,
        item: Int32[Array, "b t"],
        exists: Bool[Array, "b t"],
        user: Int32[Array, " b"] | None,
        space: TokenSpace,
        keys: Array | None = None,
    ) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """The encoder's states of histories, and which of them are no padding."""
        tokens = jnp.take(tables.codes, item, axis=0, mode="clip")
        tokens = tokens + jnp.asarray(space.offsets, tokens.dtype)
        if self.separator:
            last = self.tokens(space) - 1
            tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, 1)), constant_values=last)
        per_event = tokens.shape[-1]
        tokens = tokens.reshape(item.shape[0], -1)
        exists = jnp.repeat(exists, per_event, axis=1)
        if self.user_buckets:
            user = jnp.full(item.shape[:1], -1, jnp.int32) if user is None else user
            bucket = space.vocabulary + user_bucket(user, self.user_buckets)
            # Padding may stand in front, and the user stands right before the first item.
            first = jnp.argmax(exists, axis=1)[:, None]
            here = jnp.arange(tokens.shape[1] + 1) == first
            ahead = ((0, 0), (1, 0))
            tokens = jnp.where(here, bucket[:, None], jnp.pad(tokens, ahead))
            exists = jnp.where(here, (user >= 0)[:, None], jnp.pad(exists, ahead))
        x = self._vectors(params, tokens)
        return apply_module(Encoder(self.encoder), params["encoder"], x, exists, keys), exists

    def _dropout_keys(self, key: Array | None) -> tuple[Array | None, Array | None]:
        """Keys of both stacks: input, output, every layer; None where nothing is dropped."""
        if key is None or round(self.dropout * 256) == 0:
            return None, None
        keys = jax.random.split(key, self.layers + self.decoder.layers + 4)
        return keys[: self.layers + 2], keys[self.layers + 2 :]

    def _vectors(self, params: PyTree, tokens: Array) -> Array:
        return jnp.take(params["tokens"]["table"].astype(self.dtype), tokens, axis=0, mode="clip")

    def _logits(
        self, params: PyTree, x: Array, space: TokenSpace, level: int | Array | None = None
    ) -> Array:
        if self.tied:
            table, x = params["tokens"]["table"], x * self.width**-0.5
            kernel = codes_of_table(table, space)
        else:
            table = kernel = params["output"]["kernel"]
        logits = level_logits(x, kernel, space, level)
        if not self.normalised:
            return logits
        every = jnp.einsum(
            "...d,vd->...v" if self.tied else "...d,ldv->...lv",
            x,
            table.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
        if not self.tied:
            every = jnp.where(codes_exist(space), every, -jnp.inf).reshape(*x.shape[:-1], -1)
        return logits - jax.nn.logsumexp(every, axis=-1, keepdims=True)

    def _boxed(self, key: Array, space: TokenSpace) -> PyTree:
        """Initialises every piece on the smallest input it takes."""
        state = jnp.zeros((1, 1, self.width), self.dtype)
        exists = jnp.ones((1, 1), bool)
        table, *keys = jax.random.split(key, 4)
        rows = (self.tokens(space), self.width)
        factor, narrow = self.initial_factor, self.initial_factor * self.width**-0.5
        boxed = {
            "tokens": {"table": normal(factor, "vocab", "embed")(table, rows)},
            "encoder": Encoder(self.encoder).init(keys[0], state, exists)["params"],
            "decoder": Decoder(self.decoder).init(keys[1], state, state, exists)["params"],
        }
        if not self.tied:
            shape = (space.levels, self.width, space.width)
            kernel = normal(narrow, None, "embed", "vocab")(keys[2], shape)
            boxed["output"] = {"kernel": kernel}
        return boxed


def user_bucket(user: Int32[Array, " b"], buckets: int) -> Int32[Array, " b"]:
    """Hashes indices of users into `0 .. buckets - 1` (the finaliser of MurmurHash3), so that
    neighbouring indices, which logs often give to similar users, have nothing in common."""
    mixed = user.astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return ((mixed ^ (mixed >> 16)) % jnp.uint32(buckets)).astype(jnp.int32)


def codes_of_table(table: Float[Array, "v d"], space: TokenSpace) -> Float[Array, "l d k"]:
    """The rows of every level's codes as output matrices; narrow levels are filled with zeros."""
    levels = [
        jnp.pad(table[first : first + size], ((0, space.width - size), (0, 0)))
        for first, size in zip(space.offsets, space.sizes)
    ]
    return jnp.swapaxes(jnp.stack(levels), 1, 2)


@functools.partial(jax.jit, static_argnames=("t5", "space"))
def _init(t5: T5, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the pieces, whose results nobody reads, is dropped."""
    return unbox(t5._boxed(key, space))
