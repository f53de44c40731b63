"""HSTU for ranking (Zhai et al., arXiv:2402.17152; METHODS B4, D13): what will the user do with it?

Items and actions interleave, item_1, action_1, item_2, ...; at an item stands the question which
action follows, one logit a kind of action (multi-task). The target is thus an input, and attends to
the whole history before anything is compared.

Candidates are scored beside each other, the idea of M-FALCON: the history is read once, its keys
and values stay, and each block of candidates attends to them and every candidate to itself only.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.hstu import one_token
from jaxrec.backbones.hstu_layers import HstuLayers, HstuStack, Read, plain_norm
from jaxrec.backbones.item_states import num_items
from jaxrec.backbones.item_transformer import Affine, ItemTable, split_keys
from jaxrec.backbones.layers import apply_module, logical_axes, unbox
from jaxrec.backbones.masks import TokenMetadata
from jaxrec.backbones.masks_library import candidate_diagonal
from jaxrec.backbones.pointwise_attention import TIME
from jaxrec.backbones.sequences import code_metadata, flatten_levels
from jaxrec.types import Events, PyTree, Tables, TokenSpace


@dataclasses.dataclass(frozen=True)
class HstuRanker:
    """Predicts the kind of action at every item, given the item and all that came before it.

    Item and action of an event have its time, as queries too: the item is known when the question
    is put. Sizes, biases and normaliser as in `Hstu`, over two tokens an event.

    Raises:
        ValueError: sizes that do not divide, unknown options.
    """

    actions: int = 2
    """Kinds of action, `Events.action` in `0 .. actions - 1`; a logit each."""
    layers: int = 2
    width: int = 50
    heads: int = 1
    length: int = 200
    """Events of a history that can be read; the item that is asked about comes after them."""
    query_size: int | None = None
    """Numbers of a head's queries and keys; `width / heads` by default."""
    value_size: int | None = None
    """Numbers of a head's values and gates; `width / heads` by default."""
    dropout: float = 0.2
    """Of the input and of what each layer writes into the residual stream."""
    position_bias: bool = True
    time_bias: bool = True
    block: int = 256
    """Queries that are attended at a time."""
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"
    initial_scale: float = 0.02

    def __post_init__(self) -> None:
        for name in ("actions", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        _ = self.stack  # its own checks

    @property
    def stack(self) -> HstuStack:
        """Shape of the layers."""
        return HstuStack(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            slots=2 * (self.length + 1),
            query_size=self.query_size,
            value_size=self.value_size,
            dropout=self.dropout,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            block=self.block,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
        )

    @property
    def _head(self) -> Affine:
        return Affine(self.actions, ("embed", None), self.initial_scale)

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        tables = num_items(space) + self.actions + self.stack.slots
        head = self.width * self.actions + self.actions
        return tables * self.width + self.stack.parameters + head

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of `rows` rows of `length` events."""
        del space
        head = 2.0 * rows * length * self.width * self.actions
        return BACKWARD * (self.stack.forward_flops(rows, 2 * length) + head)

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters, float32."""
        return _initial_parameters(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter."""
        boxed = functools.partial(_boxed_parameters, self, space=space)
        return logical_axes(jax.eval_shape(lambda: boxed(jax.random.key(0))))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b t a"]:
        """Logits of every kind of action at every event, float32.

        Those of an event know its item and the items and actions before it in its segment, not its
        own action.

        Args:
            params: from `init`.
            tables: not read.
            batch: histories; several may share a row.
            space: of sparse item ids.
            key: of the dropout; None switches it off.
        """
        del tables, space
        x, metadata = self._read_events(params, batch)
        input_key, layer_keys = split_keys(key, self.dropout > 0, self.layers)
        if input_key is not None:
            x = drop(x, draw_kept(input_key, x.shape, self.dropout), self.dropout)
        inputs = x, metadata, metadata, None, layer_keys
        x, _ = apply_module(HstuLayers(self.stack), params["layers"], *inputs)
        return self._logits(params, x[:, ::2])

    def score_candidates(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        items: Int32[Array, "b m"],
        space: TokenSpace,
        *,
        time: Int32[Array, " b"] | None = None,
        block: int = 64,
    ) -> Float[Array, "b m a"]:
        """Logits of every kind of action, were each candidate the next item of the history.

        Equal to scoring the candidates one at a time, at the cost of reading the history once.

        Args:
            params: from `init`.
            tables: not read.
            batch: one history a row, padded on the right; an empty row is an unknown user.
            items: candidates of each row, in any order, padded with -1.
            space: of sparse item ids.
            time: of the requests, seconds as `Events.time`; the last event's by default.
            block: candidates a row that are scored at once; memory grows with it, results do not
                change.

        Returns:
            float32 logits, -inf in all actions of numbers that are no item.

        Raises:
            ValueError: a block below 1, or other rows of candidates than of histories.
        """
        del tables
        rows, count = items.shape
        if block < 1 or rows != batch.item.shape[0]:
            raise ValueError(
                f"got block={block} and candidates of {rows} rows beside {batch.item.shape[0]} "
                "histories; give one list of candidates a history, padded with -1, and block >= 1."
            )
        x, history = self._read_events(params, batch)
        inputs = x, history, history
        layers = HstuLayers(self.stack, keep=True)
        _, read = apply_module(layers, params["layers"], *inputs)
        block = min(block, max(count, 1))
        blocks = -(-count // block)
        padded = jnp.pad(items, ((0, 0), (0, blocks * block - count)), constant_values=-1)
        parts = jnp.swapaxes(padded.reshape(rows, blocks, block), 0, 1)
        question = _question(batch, time)
        score = functools.partial(self._score_block, params, history, read, question)
        logits = jnp.swapaxes(jax.lax.map(score, parts), 0, 1)
        logits = logits.reshape(rows, blocks * block, self.actions)[:, :count]
        known = (items >= 0) & (items < num_items(space))
        return jnp.where(known[..., None], logits, -jnp.inf)

    def _score_block(
        self,
        params: PyTree,
        history: TokenMetadata,
        read: Read,
        question: TokenMetadata,
        items: Int32[Array, "b m"],
    ) -> Float[Array, "b m a"]:
        """Logits of a block of candidates, each of which sees the history and itself."""
        asked = question.map(lambda array: jnp.broadcast_to(array, items.shape))
        numbers = jnp.arange(1, items.shape[1] + 1, dtype=jnp.int32)
        asked = _number(asked, jnp.broadcast_to(numbers, items.shape))
        history = _number(history, jnp.zeros_like(history.segment))
        keys = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), history, asked)
        x = self._embed(params, self._vectors(params, "items", items), asked.position)
        layers = HstuLayers(self.stack, candidate_diagonal)
        x, _ = apply_module(layers, params["layers"], x, asked, keys, read)
        return self._logits(params, x)

    def _read_events(self, params: PyTree, batch: Events) -> tuple[Array, TokenMetadata]:
        """Vectors of items and actions in turn, `[b 2t d]`, and what is known of them."""
        metadata = code_metadata(batch.segment, batch.position, 2)
        metadata = dataclasses.replace(metadata, labels={TIME: jnp.repeat(batch.time, 2, axis=1)})
        items = self._vectors(params, "items", batch.item)
        pairs = jnp.stack([items, self._vectors(params, "actions", batch.action)])
        return self._embed(params, flatten_levels(pairs), metadata.position), metadata

    def _vectors(self, params: PyTree, table: str, rows: Array) -> Array:
        scale = jnp.asarray(self.width**0.5, self.dtype)
        table = params[table]["table"].astype(self.dtype)
        return jnp.take(table, rows, axis=0, mode="clip") * scale

    def _embed(self, params: PyTree, vectors: Array, position: Array) -> Array:
        placed = jnp.take(params["positions"]["table"], position, axis=0, mode="clip")
        return (vectors + placed).astype(self.dtype)

    def _logits(self, params: PyTree, states: Array) -> Array:
        normed = plain_norm(states.astype(jnp.float32))
        return apply_module(self._head, params["head"], normed)


def _question(batch: Events, time: Int32[Array, " b"] | None) -> TokenMetadata:
    """What is known of the item after each history, arrays `[b 1]`."""
    asked = jnp.sum(batch.segment > 0, axis=1, dtype=jnp.int32)[:, None]
    first = jnp.where(asked > 0, batch.position[:, :1], 0)
    segment = jnp.where(asked > 0, batch.segment[:, :1], 1)
    if time is None:
        last = jnp.take_along_axis(batch.time, jnp.maximum(asked - 1, 0), axis=1)
    else:
        last = time[:, None]
    return TokenMetadata(segment, 2 * (first + asked), {TIME: last})


def _number(tokens: TokenMetadata, candidate: Int32[Array, "b t"]) -> TokenMetadata:
    """The tokens with the number of the candidate that they are, 0 for the history."""
    return dataclasses.replace(tokens, labels={**tokens.labels, "candidate": candidate})


@functools.partial(jax.jit, static_argnames=("network", "space"))
def _initial_parameters(network: HstuRanker, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the modules, whose results nobody reads, is dropped."""
    return unbox(_boxed_parameters(network, key, space))


def _boxed_parameters(network: HstuRanker, key: Array, space: TokenSpace) -> PyTree:
    """Initialises every module on the smallest inputs it takes; parameters carry axis names."""
    width, scale, slots = network.width, network.initial_scale, network.stack.slots
    state, tokens = jnp.zeros((1, 1, width), network.dtype), one_token()
    modules = {
        "actions": (ItemTable(network.actions, width, scale, None), ()),
        "head": (network._head, (state,)),
        "items": (ItemTable(num_items(space), width, scale), ()),
        "layers": (HstuLayers(network.stack), (state, tokens, tokens)),
        "positions": (ItemTable(slots, width, width**-0.5, None), ()),
    }
    keys = jax.random.split(key, len(modules))
    return {
        name: module.init(module_key, *inputs)["params"]
        for module_key, (name, (module, inputs)) in zip(keys, modules.items())
    }
