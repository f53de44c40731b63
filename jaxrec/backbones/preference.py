"""`PreferenceModel`: what a user would do with an item, as a reward or a ranking (METHODS B23).

A candidate asks the user's history what it says about it (DIN's activation unit or SIM's attention,
`target_attention`); what it learns goes to one tower an objective, each a logit, and the states of
the towers with user and item to one more network, the P-Score of OneRec (arXiv:2506.13695): one
logit for everything, trained on all labels by weight. Candidates that are shown together may attend
to each other first, as in OneRec's session-wise reward model (arXiv:2502.18965).

In alignment the model is frozen: call it on parameters behind `jax.lax.stop_gradient`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec import parallel
from jaxrec.backbones.cost import BACKWARD
from jaxrec.backbones.dropout import draw_kept, drop
from jaxrec.backbones.item_states import num_items
from jaxrec.backbones.item_transformer import (
    Affine,
    ItemLayers,
    ItemStack,
    ItemTable,
    check_dtype,
    split_keys,
)
from jaxrec.backbones.layers import apply_module, logical_axes, normal, project, unbox, zeros
from jaxrec.backbones.target_attention import (
    ActivationUnit,
    TargetAttention,
    gather,
    pool,
    search_by_category,
    search_by_inner_product,
)
from jaxrec.backbones.towers import Fusion, Towers
from jaxrec.types import Events, PyTree, Tables, TokenSpace

Unit = Literal["attention", "activation"]


class Preferences(NamedTuple):
    """What the model says of each candidate, float32; 0 where there is no candidate."""

    logits: Float[Array, "b c k"]
    """One logit an objective."""
    score: Float[Array, "b c"]
    """The P-Score, a logit."""


@dataclasses.dataclass(frozen=True)
class PreferenceModel:
    """A network of preferences over sparse item ids (`jaxrec.tokenization.ItemIds`).

    A candidate sees the events *before* it: those of the whole row, one history a row, unless
    `place` says where in the row it stands. Events are as old as the number of events since; SIM
    embeds the time since, which candidates without a time do not have. PReLU instead of DIN's Dice,
    whose moments would make a score depend on the other rows of the batch.

    Raises:
        ValueError: no or equal objectives, a size that is not positive or does not divide, an
            unknown option, or a category without a search.
    """

    tasks: tuple[str, ...] = ("long_view", "like", "follow")
    """Names of the objectives, in the order of the logits."""
    width: int = 64
    heads: int = 4
    """Of the attention over events and of that over candidates."""
    unit: Unit = "attention"
    """How a candidate reads events: SIM's `attention`, or DIN's `activation` unit."""
    unit_hidden: tuple[int, ...] = (80, 40)
    """Hidden layers of the activation unit."""
    search: int = 0
    """Events that a general search keeps for each candidate; 0 reads all of them."""
    category: str = ""
    """Integers of `Tables.features` by which the search goes; the inner product by default."""
    features: tuple[tuple[str, int], ...] = ()
    """Arrays of `Tables.features` that item vectors also read, with their numbers an item."""
    actions: int = 1
    """Kinds of events; with more than one, each has a vector."""
    age_buckets: int = 16
    """Ages that are told apart: 1, 2-3, 4-7, ... events ago; older ones fall into the last."""
    list_layers: int = 0
    """Layers in which the candidates of a page attend to each other."""
    tower: int = 32
    """Width of the towers and of the network that fuses them."""
    dropout: float = 0.0
    dtype: str = "float32"
    """Type of the arithmetic; parameters, norms, softmax and logits stay float32."""
    initial_scale: float = 0.02
    """Standard deviation of the item vectors at the start."""

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks={self.tasks} needs at least one name, each once.")
        for name in ("width", "heads", "actions", "age_buckets", "tower"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if min(self.search, self.list_layers) < 0:
            raise ValueError(
                f"search={self.search} and list_layers={self.list_layers} may not be negative."
            )
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit={self.unit!r} is unknown; choose one of {get_args(Unit)}.")
        if not self.unit_hidden or min(self.unit_hidden) < 1:
            raise ValueError(f"unit_hidden={self.unit_hidden} needs a layer, each at least 1 wide.")
        if self.category and not self.search:
            raise ValueError(
                f"category={self.category!r} needs a search: set search to the events to keep."
            )
        check_dtype(self.dtype)
        _ = self.stack  # its own checks

    @property
    def stack(self) -> ItemStack:
        """Shape of the layers over candidates."""
        return ItemStack(
            layers=max(self.list_layers, 1),
            width=self.width,
            heads=self.heads,
            feedforward=2 * self.width,
            dropout=self.dropout,
            dtype=self.dtype,
            initial_scale=self.initial_scale,
        )

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        width, tower, tasks = self.width, self.tower, len(self.tasks)
        vectors = num_items(space) + sum(numbers for _, numbers in self.features)
        vectors += self.actions if self.actions > 1 else 0
        count = vectors * width + self.age_buckets * self._bias_heads
        if self.unit == "attention":
            count += 4 * width * width
        else:
            count += 3 * width * self.unit_hidden[0] + self._deep + 2 * sum(self.unit_hidden) + 1
        count += 4 * width * width + width
        count += self.stack.parameters if self.list_layers else 0
        count += tasks * (width * tower + 2 * tower + 1)
        return count + (tasks * tower + 2 * width) * tower + 2 * tower + 1

    def flops(self, space: TokenSpace, rows: int, length: int, candidates: int) -> float:
        """FLOPs of forward and backward for so many events and candidates a row, by formula."""
        del space
        width, tower, tasks = self.width, self.tower, len(self.tasks)
        asked, read = rows * candidates, min(self.search or length, length)
        events = asked * read if self.search else rows * length
        pairs = asked * read
        weights = rows * (length + candidates) * width * sum(size for _, size in self.features)
        weights += asked * length * width  # the mean of the history
        if self.unit == "attention":
            weights += 2 * width * (asked * width + events * width + pairs)
        else:
            weights += width * self.unit_hidden[0] * (asked + events + pairs)
            weights += pairs * (self._deep + width)
        weights += asked * (4 * width * width + tasks * (width + 1) * tower)
        weights += asked * (tasks * tower + 2 * width + 1) * tower
        layers = self.stack.forward_flops(rows, candidates) if self.list_layers else 0
        soft = 2.0 * asked * length * width if self.search and not self.category else 0.0
        return BACKWARD * (2.0 * weights + layers) + soft  # the search has no backward pass

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
        candidates: Int32[Array, "b c"],
        space: TokenSpace,
        *,
        place: Int32[Array, "b c"] | None = None,
        key: Array | None = None,
    ) -> Preferences:
        """Logits of all objectives and the P-Score of every candidate.

        Args:
            params: from `init`.
            tables: the features that the model reads.
            batch: histories; without `place`, one a row.
            candidates: items; negative where a list is shorter than others.
            space: of sparse item ids.
            place: column of the row at which each candidate stands: it sees the events of that
                column's history that come before, and candidates of the same place. None: it
                stands after its row's history, and so do all others.
            key: of the dropout; None switches it off.

        Raises:
            ValueError: a feature that the tables do not have, or of another size.
        """
        self._check_features(tables)
        network = _PreferenceNet(self, num_items(space))
        return apply_module(network, params, tables.features, batch, candidates, place, key)

    def logits(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        candidates: Int32[Array, "b c"],
        space: TokenSpace,
        *,
        place: Int32[Array, "b c"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b c k"]:
        """One logit an objective; as `forward`."""
        return self.forward(params, tables, batch, candidates, space, place=place, key=key).logits

    def score(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events,
        candidates: Int32[Array, "b c"],
        space: TokenSpace,
        *,
        place: Int32[Array, "b c"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b c"]:
        """The P-Score, one logit for everything; as `forward`."""
        return self.forward(params, tables, batch, candidates, space, place=place, key=key).score

    @property
    def _deep(self) -> int:
        """Weights of the activation unit after its first layer."""
        return sum(a * b for a, b in zip(self.unit_hidden, (*self.unit_hidden[1:], 1)))

    @property
    def _bias_heads(self) -> int:
        return self.heads if self.unit == "attention" else 1

    def _check_features(self, tables: Tables) -> None:
        wanted: list[tuple[str, tuple[int, ...]]] = [
            (name, (size,)) for name, size in self.features
        ]
        wanted += [(self.category, ())] if self.category else []
        for name, shape in wanted:
            found = tables.features.get(name)
            if found is None or found.shape[1:] != shape:
                have = {each: array.shape for each, array in tables.features.items()}
                raise ValueError(
                    f"the model reads tables.features[{name!r}] of shape (items, *{shape}); the "
                    f"tables have {have or 'no feature'}."
                )


class Seen(NamedTuple):
    """Who may see whom."""

    events: Bool[Array, "b c t"]
    age: Int32[Array, "b c t"]
    """Events since, from 1; rubbish where unseen."""
    candidates: Bool[Array, "b 1 c c"]


class _PreferenceNet(nn.Module):
    cfg: PreferenceModel
    items: int

    @nn.compact
    def __call__(
        self,
        features: dict[str, Array],
        batch: Events,
        candidates: Array,
        place: Array | None,
        key: Array | None,
    ) -> Preferences:
        cfg, seen = self.cfg, see(batch, candidates, place)
        everything = jnp.concatenate([candidates, batch.item], axis=1)
        vectors = self._item_vectors(features, everything)
        item, events = jnp.split(vectors, [candidates.shape[1]], axis=1)
        if cfg.actions > 1:
            init = normal(cfg.initial_scale, None, "embed")
            table = self.param("actions", init, (cfg.actions, cfg.width)).astype(cfg.dtype)
            events = events + jnp.take(table, batch.action, axis=0, mode="clip")
        number = jnp.sum(seen.events, axis=-1, keepdims=True)
        share = jnp.broadcast_to(1.0 / jnp.maximum(number, 1), seen.events.shape)
        user = pool(share.astype(cfg.dtype), events[:, None], seen.events)
        interest = self._interest(features, batch, candidates, item, events, seen)
        x = jnp.concatenate([item, interest, item * interest, user], axis=-1)
        fuse = Affine(cfg.width, ("embed", None), (4 * cfg.width) ** -0.5, name="fuse")
        x = parallel.constrain(jax.nn.silu(fuse(x)), "batch", None, None)
        input_key, layer_keys = split_keys(key, cfg.dropout > 0, cfg.list_layers)
        if input_key is not None:
            x = drop(x, draw_kept(input_key, x.shape, cfg.dropout), cfg.dropout)
        if cfg.list_layers:
            x = ItemLayers(cfg.stack, name="list")(x, seen.candidates, layer_keys)
        logits, states = Towers(len(cfg.tasks), cfg.tower, name="towers")(x)
        score = Fusion(cfg.tower, name="score")(jnp.concatenate([states, user, item], axis=-1))
        exists = candidates >= 0
        return Preferences(jnp.where(exists[..., None], logits, 0.0), jnp.where(exists, score, 0.0))

    def _item_vectors(self, features: dict[str, Array], item: Array) -> Array:
        """Vectors of items: a row of the table each, and their projected features."""
        cfg = self.cfg
        table = ItemTable(self.items, cfg.width, cfg.initial_scale, name="items")()
        vectors = jnp.take(table.astype(cfg.dtype), item, axis=0, mode="clip")
        for name, numbers in cfg.features:
            init = normal(numbers**-0.5, None, "embed")
            kernel = self.param(f"feature_{name}", init, (numbers, cfg.width))
            read = jnp.take(features[name].astype(cfg.dtype), item, axis=0, mode="clip")
            vectors = vectors + project(read, kernel)
        return vectors

    def _interest(
        self,
        features: dict[str, Array],
        batch: Events,
        candidates: Array,
        item: Array,
        events: Array,
        seen: Seen,
    ) -> Array:
        """What the history says about each candidate."""
        cfg, allowed, age, read = self.cfg, seen.events, seen.age, events[:, None]
        if cfg.search:
            if cfg.category:
                categories = features[cfg.category]
                asked = jnp.take(categories, candidates, mode="clip")
                there = jnp.take(categories, batch.item, mode="clip")
                found = search_by_category(asked, there, allowed, cfg.search)
            else:
                found = search_by_inner_product(item, events, allowed, cfg.search)
            read, allowed = gather(events, found), found.valid
            age = jnp.take_along_axis(age, found.index, axis=2)
        shape = (cfg.age_buckets, cfg._bias_heads)
        ages = self.param("ages", zeros(None, None), shape).astype(cfg.dtype)
        bias = jnp.take(ages, age_bucket(age, cfg.age_buckets), axis=0)
        if cfg.unit == "attention":
            return TargetAttention(cfg.heads, name="unit")(item, read, allowed, bias)
        unit = ActivationUnit(cfg.unit_hidden, name="unit")
        weights, _ = unit(item, read, allowed)
        return pool(weights + bias[..., 0], read, allowed)


def see(batch: Events, candidates: Int32[Array, "b c"], place: Int32[Array, "b c"] | None) -> Seen:
    """Which events and which other candidates each candidate sees; arguments as in `forward`."""
    exists = candidates >= 0
    if place is None:
        allowed = jnp.broadcast_to(batch.segment[:, None] > 0, (*exists.shape, batch.item.shape[1]))
        last = jnp.max(jnp.where(batch.segment > 0, batch.position, -1), axis=1, keepdims=True)
        now, together = jnp.broadcast_to(last + 1, exists.shape), jnp.ones((), bool)
    else:
        segment = jnp.take_along_axis(batch.segment, place, axis=1)
        now = jnp.take_along_axis(batch.position, place, axis=1)
        allowed = (batch.segment[:, None] == segment[..., None]) & (segment > 0)[..., None]
        allowed &= batch.position[:, None] < now[..., None]
        together = place[:, :, None] == place[:, None, :]
    pairs = exists[:, :, None] & exists[:, None, :] & together
    age = now[..., None] - batch.position[:, None]
    return Seen(allowed & exists[..., None], age, pairs[:, None])


def age_bucket(age: Int32[Array, "*n"], buckets: int) -> Int32[Array, "*n"]:
    """Index of an age among 1, 2-3, 4-7, ...: the whole part of its binary logarithm.

    >>> import jax.numpy as jnp
    >>> age_bucket(jnp.array([1, 2, 3, 4, 1000]), 4).tolist()
    [0, 1, 1, 2, 3]
    """
    return jnp.clip(31 - jax.lax.clz(jnp.maximum(age, 1)), 0, buckets - 1)


@functools.partial(jax.jit, static_argnames=("model", "space"))
def _initial_parameters(model: PreferenceModel, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic, whose results nobody reads, is dropped."""
    return unbox(_boxed_parameters(model, key, space))


def _boxed_parameters(model: PreferenceModel, key: Array, space: TokenSpace) -> PyTree:
    """Initialises the network on the smallest inputs it takes; parameters carry axis names."""
    features = {name: jnp.zeros((1, numbers)) for name, numbers in model.features}
    if model.category:
        features[model.category] = jnp.zeros(1, jnp.int32)
    index = jnp.zeros((1, 1), jnp.int32)
    batch = Events(index, index, index, index, index, jnp.zeros((1, 1)))
    network = _PreferenceNet(model, num_items(space))
    return network.init(key, features, batch, index, None, None)["params"]
