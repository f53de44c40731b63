"""Pairs of a chosen and some rejected items for each history, made on the fly (METHODS O13-O17).

All are called in the compiled step, `pairs(maker, batch, key) -> Paired`, with a `Maker` that can
write and reward rollouts of the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxrec.alignment.contexts import Context
from jaxrec.alignment.policy import Given
from jaxrec.alignment.rewarding import Rewarded
from jaxrec.decoding.catalogue import ancestor_of, first_child, first_row, leaf_of


class Paired(NamedTuple):
    """A chosen item and `n` rejected ones for each history."""

    chosen: Int32[Array, " b"]
    """-1 where there is none."""
    rejected: Int32[Array, "b n"]
    """-1 where there is none."""
    gap: Float[Array, "b n"]
    """Reward of the chosen item minus that of the rejected one; 1 where nothing was rewarded."""


class Maker(NamedTuple):
    """What pairs are made of."""

    given: Given
    """The catalogue and the items' codes."""
    write: Callable[[Array], Int32[Array, "b g"]]
    """key -> rollouts of the policy."""
    reward: Callable[[Int32[Array, "b g"], Array], Rewarded]
    """(items, key) -> their rewards."""


@runtime_checkable
class Pairs(Protocol):
    """A way to make pairs; a frozen dataclass."""

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomRejected:
    """What the user did, against items drawn evenly from the catalogue (S-DPO, arXiv:2406.09215).

    An item of the history may be drawn. One that equals the chosen item is left out and counted.

    Raises:
        ValueError: no rejected item.
    """

    count: int = 3
    """Rejected items of a history."""

    def __post_init__(self) -> None:
        check_count("RandomRejected", self.count)

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories."""
        shape = (batch.target.shape[0], self.count)
        row = jax.random.randint(key, shape, 0, maker.given.catalogue.items, jnp.int32)
        rejected = maker.given.catalogue.item_at(row)
        return Paired(batch.target, rejected, jnp.ones(shape))


@dataclasses.dataclass(frozen=True)
class PrefixRejected:
    """What the user did, against items that share at least the first codes with it: the later the
    stage, the harder to tell apart (Align3GR's SP-DPO, arXiv:2511.11255).

    Items are drawn evenly from those below the chosen item's prefix, a range of the sorted
    catalogue. A progressive schedule is a stage of the recipe for each number of codes.

    Raises:
        ValueError: no rejected item, or a negative number of codes.
    """

    shared: int = 0
    """Codes that a rejected item has in common with the chosen one, at least."""
    count: int = 20
    """Rejected items of a history."""

    def __post_init__(self) -> None:
        check_count("PrefixRejected", self.count)
        if self.shared < 0:
            raise ValueError(f"PrefixRejected: shared={self.shared} must not be negative.")

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories.

        Raises:
            ValueError: as many codes as an item has, so that none but itself is left.
        """
        catalogue = maker.given.catalogue
        if self.shared >= catalogue.levels:
            raise ValueError(
                f"PrefixRejected: shared={self.shared} leaves no other item where semantic IDs "
                f"have {catalogue.levels} codes; use 0 .. {catalogue.levels - 1}."
            )
        leaf = leaf_of(catalogue, catalogue.row_of(jnp.maximum(batch.target, 0)))
        prefix = ancestor_of(catalogue, catalogue.levels, leaf, self.shared)
        start, stop = (self._row(maker, prefix + more) for more in (0, 1))
        chance = jax.random.uniform(key, (batch.target.shape[0], self.count))
        row = start[:, None] + (chance * (stop - start)[:, None]).astype(jnp.int32)
        rejected = catalogue.item_at(jnp.minimum(row, stop[:, None] - 1))
        return Paired(batch.target, rejected, jnp.ones(rejected.shape))

    def _row(self, maker: Maker, node: Int32[Array, " b"]) -> Int32[Array, " b"]:
        """First row of the items below nodes of depth `shared`."""
        catalogue = maker.given.catalogue
        for depth in range(self.shared, catalogue.levels):
            node = first_child(catalogue, depth, node)
        return first_row(catalogue, node)


@dataclasses.dataclass(frozen=True)
class SelfPlay:
    """What the user did, against what the policy itself writes (SPRec, arXiv:2412.09243).

    The policy's own hits are no pair and are counted. The published loop is `reference=Follow(N)`:
    every round starts from the policy that the last one ended with.
    """

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories."""
        written = maker.write(key)
        return Paired(batch.target, written, jnp.ones(written.shape))


@dataclasses.dataclass(frozen=True)
class BestAndWorst:
    """The rollout of the highest reward against that of the lowest (IPA of OneRec,
    arXiv:2502.18965); ties go to the earlier one. Groups of equal rewards make no pair.
    """

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories."""
        write_key, reward_key = jax.random.split(key)
        items = maker.write(write_key)
        rewarded = maker.reward(items, reward_key)
        best = argbest(rewarded.rewards, rewarded.valid)
        worst = argbest(-rewarded.rewards, rewarded.valid)

        def at(values: Array, index: Array) -> Array:
            return jnp.take_along_axis(values, index[:, None], axis=1)

        gap = at(rewarded.rewards, best) - at(rewarded.rewards, worst)
        pair = gap > 0
        chosen = jnp.where(pair, at(items, best), -1)
        return Paired(chosen[:, 0], jnp.where(pair, at(items, worst), -1), gap)


@dataclasses.dataclass(frozen=True)
class BestAgainstAll:
    """The rollout of the highest reward against all others of its group that have less, with the
    gaps of their rewards: for weighted and list-wise objectives (OneSug, OneSearch).
    """

    def __call__(self, maker: Maker, batch: Context, key: Array) -> Paired:
        """Pairs of a batch of histories."""
        write_key, reward_key = jax.random.split(key)
        items = maker.write(write_key)
        rewarded = maker.reward(items, reward_key)
        best = argbest(rewarded.rewards, rewarded.valid)[:, None]
        gap = jnp.take_along_axis(rewarded.rewards, best, axis=1) - rewarded.rewards
        less = rewarded.valid & (gap > 0)
        first = jnp.take_along_axis(items, best, axis=1)[:, 0]
        chosen = jnp.where(jnp.any(less, axis=1), first, -1)
        return Paired(chosen, jnp.where(less, items, -1), jnp.where(less, gap, 0.0))


def argbest(values: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Int32[Array, " b"]:
    """Place of the highest valid value, the first of equals."""
    return jnp.argmax(jnp.where(valid, values, -jnp.inf), axis=1).astype(jnp.int32)


def check_count(component: str, count: int) -> None:
    """Refuses to make no pairs.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"{component}: count={count} makes no pair; use at least 1.")
