"""Sampling items from the catalogue: for reinforcement learning, exploration, and estimates.

Every draw is an item: at each level the model's probabilities are renormalised over the children
that exist and are not filtered, then sharpened (`temperature`) and cut (`top_k`, `top_p`), and the
log-probability that comes back is that of exactly the distribution that was drawn from (METHODS
D16). Two ways:

- `sample_items`: independent draws, which may repeat;
- `stochastic_beams`: draws without replacement in one pass (Kool et al. 2019, arXiv:1903.06059,
  "Stochastic Beams and Where to Find Them"), the k largest of the perturbed log-probabilities of
  all items, found top down.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.decoding.beam import Beams
from jaxrec.decoding.catalogue import Catalogue, code_of, first_row
from jaxrec.decoding.children import Children, child_at, live_children
from jaxrec.decoding.expansion import nth_live_row
from jaxrec.decoding.filters import Filters, PreparedFilters, live_before, prepare_filters
from jaxrec.decoding.interface import (
    StepFunctions,
    call_step,
    check_positive,
    check_temperature,
)
from jaxrec.decoding.ranking import LOWEST, log_mass
from jaxrec.decoding.ranking import top_k as best_of
from jaxrec.types import PyTree, Ranked


class Sampled(NamedTuple):
    """Items that were drawn, in the order of the draws."""

    items: Int32[Array, "b n"]
    """-1 where nothing could be drawn: everything is filtered, or there are fewer than n IDs."""
    codes: Int32[Array, "b n l"]
    """Their semantic IDs; 0 where there is no item."""
    log_probs: Float[Array, "b n l"]
    """Log-probability of each code given those before it, under the distribution that was drawn
    from; 0 where there is no item. Which of the items of one ID came is even chance and not in
    it."""
    keys: Float[Array, "b n"]
    """`stochastic_beams`: the perturbed log-probability, falling. `sample_items`: the sum of
    `log_probs`. -inf where there is no item."""
    valid: Bool[Array, "b n"]
    """Whether there is an item."""


def level_log_probs(
    logits: Float[Array, "b w k"],
    children: Children,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Float[Array, "b w c"]:
    """The distribution over the places of each beam that samples are drawn from; -inf elsewhere.

    Args:
        logits: of the level's codes.
        children: that exist and are not filtered.
        temperature: logits are divided by it.
        top_k: most places that are kept, likeliest first and the lower place of equals; 0 for all.
        top_p: places are kept, likeliest first, until this share of the mass is reached.

    Example:
        Three codes, the last of which leads to no item:

        >>> import jax.numpy as jnp
        >>> exists = jnp.array([[[True, True, False]]])
        >>> logits = jnp.log(jnp.array([[[0.1, 0.3, 0.6]]]))
        >>> jnp.exp(level_log_probs(logits, Children(exists, None))).round(2).tolist()
        [[[0.25, 0.75, 0.0]]]
    """
    scores = jnp.where(children.exists, children.pick(logits) / temperature, -jnp.inf)
    scores = scores - log_mass(scores)[..., None]
    if top_k == 0 and top_p >= 1.0:
        return scores
    order = jnp.argsort(-scores, axis=-1, stable=True)
    share = jnp.exp(jnp.take_along_axis(scores, order, axis=-1))
    kept = jnp.cumsum(share, axis=-1) - share < top_p
    if top_k:
        kept &= jnp.arange(share.shape[-1]) < top_k
    rank = jnp.argsort(order, axis=-1)
    scores = jnp.where(jnp.take_along_axis(kept, rank, axis=-1), scores, -jnp.inf)
    return scores - log_mass(scores)[..., None]


def sample_items(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    key: Array,
    count: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampled:
    """Independent draws of items; the same one may come several times.

    Args:
        functions: a model bound to a batch of histories.
        catalogue: the index of the items.
        filters: what may be drawn; everything by default.
        key: of the chance.
        count: draws a row.
        temperature: logits are divided by it.
        top_k: codes that are kept at each level, the likeliest; 0 for all.
        top_p: mass of codes that is kept at each level, the likeliest first.

    Raises:
        ValueError: numbers out of range, or shapes that do not fit each other.
    """
    sampler = _Sampler.bound(functions, catalogue, filters, count, temperature, top_k, top_p)
    draws, cache = sampler.start(), functions.cache
    *keys, last = jax.random.split(key, catalogue.levels + 1)
    for level in range(catalogue.levels):
        scores, cache = sampler.scores(draws, cache, level)
        parent = jnp.arange(count, dtype=jnp.int32)
        if level == 0:  # all draws start from the root
            scores, parent = jnp.repeat(scores, count, axis=1), jnp.zeros_like(parent)
        parent = jnp.broadcast_to(parent, scores.shape[:2])
        noise = jax.random.gumbel(keys[level], scores.shape)
        place = jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)
        gained = jnp.take_along_axis(scores, place[..., None], axis=-1)[..., 0]
        total = jnp.take_along_axis(draws.key, parent, axis=1) + gained
        draws = sampler.follow(draws, level, parent, place, gained, total)
    return sampler.finish(draws, last)


def stochastic_beams(
    functions: StepFunctions,
    catalogue: Catalogue,
    filters: Filters | PreparedFilters | None = None,
    *,
    key: Array,
    count: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampled:
    """Draws without replacement: as if IDs were drawn one after another and each laid aside.

    Every ID gets Gumbel noise on its log-probability, and the largest come back, largest first. The
    noise of a prefix is the largest of the IDs below it, so it is drawn top down, each level's
    under the condition of that above. Arguments and errors as `sample_items`.
    """
    sampler = _Sampler.bound(functions, catalogue, filters, count, temperature, top_k, top_p)
    draws, cache = sampler.start(), functions.cache
    root, *keys, last = jax.random.split(key, catalogue.levels + 2)
    draws = draws._replace(key=jax.random.gumbel(root, draws.key.shape))
    for level in range(catalogue.levels):
        scores, cache = sampler.scores(draws, cache, level)
        total = draws.beams.score[..., None] + scores
        noisy = total + jax.random.gumbel(keys[level], scores.shape)
        perturbed = jnp.where(total > -jnp.inf, _conditioned(noisy, draws.key), -jnp.inf)
        rows, beams, places = scores.shape
        best, index = best_of(perturbed.reshape(rows, -1), min(count, beams * places))
        gained = jnp.take_along_axis(scores.reshape(rows, -1), index, axis=1)
        parent, place = index // places, index % places
        draws = sampler.follow(draws, level, parent, place, gained, best)
    return sampler.finish(draws, last)


def _conditioned(
    noisy: Float[Array, "b w c"], largest: Float[Array, "b w"]
) -> Float[Array, "b w c"]:
    """Gumbel variables given that the largest of each beam is a known number T.

    `-log(exp(-T) - exp(-Z) + exp(-G))` with Z the largest of the drawn G, without overflow (Kool et
    al., appendix B).
    """
    drawn = jnp.maximum(jnp.max(noisy, axis=-1, keepdims=True), LOWEST)
    # log(1 - exp(G - Z)): -inf at the largest itself.
    gap = jnp.log1p(-jnp.exp(jnp.minimum(noisy - drawn, 0.0)))
    shift = largest[..., None] - noisy + gap
    return largest[..., None] - jnp.maximum(shift, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(shift)))


class _Draws(NamedTuple):
    """Prefixes that are being drawn."""

    beams: Beams
    """`score` is the log-probability of the prefix."""
    key: Float[Array, "b w"]
    """What becomes `Sampled.keys`."""
    codes: tuple[Int32[Array, "b w"], ...]
    """Every code so far."""
    log_probs: tuple[Float[Array, "b w"], ...]
    """And its log-probability."""


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """The arguments that all the steps of one sampling share."""

    functions: StepFunctions
    catalogue: Catalogue
    filters: PreparedFilters
    count: int
    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def bound(
        cls,
        functions: StepFunctions,
        catalogue: Catalogue,
        filters: Filters | PreparedFilters | None,
        count: int,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> _Sampler:
        """Checks the numbers and lays the filters."""
        check_sampling(count, temperature, top_k, top_p)
        live = prepare_filters(catalogue, filters, functions.batch)
        return cls(functions, catalogue, live, count, temperature, top_k, top_p)

    def start(self) -> _Draws:
        """The root."""
        root = jnp.zeros((self.functions.batch, 1), jnp.int32)
        zero = root.astype(jnp.float32)
        return _Draws(Beams(root, zero, root, root), zero, (), ())

    def scores(
        self, draws: _Draws, cache: PyTree, level: int
    ) -> tuple[Float[Array, "b w c"], PyTree]:
        """Log-probabilities of the places below the beams."""
        beams = draws.beams
        width = self.catalogue.space.width
        logits, cache = call_step(self.functions, cache, beams.code, beams.parent, level, width)
        children = live_children(self.catalogue, self.filters, beams.node, level, distinct=False)
        scores = level_log_probs(
            logits,
            children,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        return scores, cache

    def follow(
        self,
        draws: _Draws,
        level: int,
        parent: Int32[Array, "b w"],
        place: Int32[Array, "b w"],
        gained: Float[Array, "b w"],
        key: Float[Array, "b w"],
    ) -> _Draws:
        """Goes on to the places that were drawn."""

        def of_parent(values: Array) -> Array:
            return jnp.take_along_axis(values, parent, axis=1)

        alive, catalogue = key > -jnp.inf, self.catalogue
        node = child_at(catalogue, level, of_parent(draws.beams.node), place)
        node = jnp.where(alive, node, -1)
        code = jnp.where(alive, code_of(catalogue, level + 1, jnp.maximum(node, 0)), 0)
        score = jnp.where(alive, of_parent(draws.beams.score) + gained, -jnp.inf)
        return _Draws(
            Beams(node, score, code, parent),
            key,
            (*map(of_parent, draws.codes), code),
            (*map(of_parent, draws.log_probs), jnp.where(alive, gained, 0.0)),
        )

    def finish(self, draws: _Draws, key: Array) -> Sampled:
        """Items of the leaves that were drawn."""
        leaf, valid = draws.beams.node, draws.beams.node >= 0
        row = self._row_in(jnp.maximum(leaf, 0), key)
        found = Sampled(
            items=jnp.where(valid, self.catalogue.item_at(row), -1),
            codes=jnp.where(valid[..., None], jnp.stack(draws.codes, axis=-1), 0),
            log_probs=jnp.where(valid[..., None], jnp.stack(draws.log_probs, axis=-1), 0.0),
            keys=jnp.where(valid, draws.key, -jnp.inf),
            valid=valid,
        )
        missing = self.count - leaf.shape[1]
        nothing = Sampled(-1, 0, 0.0, -jnp.inf, False)  # ty: ignore[invalid-argument-type]
        return jax.tree.map(
            lambda values, fill: jnp.pad(
                values,
                ((0, 0), (0, missing), *((0, 0),) * (values.ndim - 2)),
                constant_values=fill,
            ),
            found,
            nothing,
        )

    def _row_in(self, leaf: Int32[Array, "b w"], key: Array) -> Int32[Array, "b w"]:
        """A row of each leaf that may be returned, each with even chance."""
        start = first_row(self.catalogue, leaf)
        if self.catalogue.shape.max_group == 1:
            return start
        stop = first_row(self.catalogue, leaf + 1)
        before = live_before(self.filters, start)
        count = live_before(self.filters, stop) - before
        chance = jax.random.uniform(key, leaf.shape)
        number = jnp.clip((chance * count).astype(jnp.int32), 0, jnp.maximum(count - 1, 0))
        row = nth_live_row(self.catalogue, self.filters, start, stop, before + number)
        return jnp.clip(row, 0, self.catalogue.items - 1)


def check_sampling(count: int, temperature: float, top_k: int, top_p: float) -> None:
    """Refuses numbers that leave nothing to draw.

    Raises:
        ValueError: a number out of range.
    """
    check_positive(count=count)
    check_temperature(temperature)
    if top_k < 0 or not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"top_k={top_k} and top_p={top_p}: give top_k >= 0 (0 keeps all codes) and top_p in "
            "(0, 1]."
        )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Drawn items as an answer, without replacement: for exploration. See `stochastic_beams`.

    Scores are the perturbed log-probabilities, falling. Needs a key.

    Raises:
        ValueError: a number out of range.
    """

    k: int = 50
    """Items per row."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Codes that are kept at each level, the likeliest; 0 for all."""
    top_p: float = 1.0
    """Mass of codes that is kept at each level, the likeliest first."""

    def __post_init__(self) -> None:
        check_sampling(self.k, self.temperature, self.top_k, self.top_p)

    def __call__(
        self,
        functions: StepFunctions,
        catalogue: Catalogue,
        filters: Filters | PreparedFilters | None = None,
        key: jax.Array | None = None,
    ) -> Ranked:
        """Draws a list for each row of a batch.

        Raises:
            ValueError: no key.
        """
        if key is None:
            raise ValueError("Sampling draws items at random; pass key=jax.random.key(SEED).")
        sampled = stochastic_beams(
            functions,
            catalogue,
            filters,
            key=key,
            count=self.k,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        return Ranked(sampled.items, sampled.keys, sampled.valid)
