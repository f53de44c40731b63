"""How sure a number is: bootstrap intervals over users, and paired comparisons of two methods.

Everything is resampled over users, because the cases of one user are not independent: where a user
has several cases, average them first with `metrics.per_user_means`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

CHUNK = 4_000_000
"""Random numbers drawn at once; bounds the memory, not the results."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over users with its bootstrap interval."""

    mean: float
    low: float
    high: float
    level: float
    """Share of repetitions of the experiment whose interval holds the true mean, e.g. 0.95."""


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean over users of (first method - second method), with interval and p-value."""

    difference: float
    low: float
    high: float
    level: float
    p_value: float

    @property
    def verdict(self) -> str:
        """One of "ahead", "behind", and "undecided" when the interval holds zero."""
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "undecided"


def bootstrap_mean(
    values: Float[np.ndarray, "u"], *, draws: int = 1000, level: float = 0.95, seed: int
) -> Interval:
    """Percentile bootstrap interval of a mean over users.

    Args:
        values: one number a user.
        draws: resamples of the users, with replacement.
        level: 0.95 for a 95 % interval.
        seed: equal seeds, equal intervals.

    Raises:
        ValueError: no user, a value that is not finite, draws below 1 or level outside (0, 1).
    """
    return bootstrap_means({"value": values}, draws=draws, level=level, seed=seed)["value"]


def bootstrap_means(
    values: Mapping[str, Float[np.ndarray, "u"]],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """`bootstrap_mean` of several metrics of the same users, from the same resamples.

    Args: as `bootstrap_mean`; every array holds the same users in the same order.

    Raises:
        ValueError: as `bootstrap_mean`, or arrays of different lengths.
    """
    table = _table(values, draws, level)
    users = len(table)
    # Users with equal numbers are interchangeable, and ranks take few values: a resample is how
    # often each distinct row was drawn, which is a multinomial over tens of rows, not thousands.
    distinct, times = np.unique(table, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty((draws, table.shape[1]))
    step = max(1, CHUNK // len(distinct))
    for first in range(0, draws, step):
        size = min(step, draws - first)
        drawn = generator.multinomial(users, times / users, size=size)
        means[first : first + size] = drawn @ distinct / users
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return {
        name: Interval(float(table[:, i].mean()), float(low[i]), float(high[i]), level)
        for i, name in enumerate(values)
    }


def paired_difference(
    first: Float[np.ndarray, "u"],
    second: Float[np.ndarray, "u"],
    *,
    draws: int = 1000,
    permutations: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> PairedDifference:
    """How far `first` is ahead of `second` on the same users.

    The interval is the bootstrap interval of the users' differences. The p-value is that of the
    sign-flip permutation test: under the hypothesis that the methods are exchangeable, every
    user's difference is as likely with either sign.

    Args:
        first: one number a user, of the first method.
        second: the same users in the same order, of the second method.
        draws: bootstrap resamples.
        permutations: sign flips. With at most this many distinct ones, all are tried and the
            p-value is exact.
        level: of the interval.
        seed: equal seeds, equal results.

    Raises:
        ValueError: as `bootstrap_means`.
    """
    _table({"first": first, "second": second}, draws, level)
    if permutations < 1:
        raise ValueError(f"The test needs at least one permutation, got {permutations}.")
    gap = first - second
    interval = bootstrap_mean(gap, draws=draws, level=level, seed=seed)
    p_value = sign_flip_p_value(gap, permutations=permutations, seed=seed)
    return PairedDifference(interval.mean, interval.low, interval.high, level, p_value)


def sign_flip_p_value(
    differences: Float[np.ndarray, "u"], *, permutations: int = 10_000, seed: int
) -> float:
    """Two-sided p-value of the mean of paired differences under random signs.

    >>> sign_flip_p_value(np.array([1.0, 1.0, 1.0, 0.0]), seed=0)
    0.25
    """
    # A zero has no sign; leaving it out changes no sum, and most users differ in nothing.
    moved = differences[differences != 0].astype(np.float64)
    if not len(moved):
        return 1.0
    # Sums that are equal on paper may differ in the last digits.
    reach = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
    if 2 ** min(len(moved), 62) <= permutations:
        return float((np.abs(_all_signs(len(moved)) @ moved) >= reach).mean())
    # Of `times` users that differ by the same size, a binomial number keeps the plus sign.
    sizes, times = np.unique(np.abs(moved), return_counts=True)
    generator = np.random.default_rng(seed)
    as_far, step = 0, max(1, CHUNK // len(sizes))
    for first in range(0, permutations, step):
        plus = generator.binomial(times, 0.5, size=(min(step, permutations - first), len(sizes)))
        as_far += int((np.abs((2 * plus - times) @ sizes) >= reach).sum())
    # The data as they are count as one more permutation, so that p is never 0.
    return (as_far + 1) / (permutations + 1)


def _all_signs(size: int) -> Float[np.ndarray, "s u"]:
    bits = np.arange(2**size)[:, None] >> np.arange(size) & 1
    return 2.0 * bits - 1.0


def _table(
    values: Mapping[str, Float[np.ndarray, "u"]], draws: int, level: float
) -> Float[np.ndarray, "u m"]:
    """The metrics side by side, after checking them."""
    if draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"A bootstrap needs draws >= 1 and a level between 0 and 1, got draws={draws}, "
            f"level={level}."
        )
    lengths = {name: len(array) for name, array in values.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"Every metric needs the same users, at least one; got lengths {lengths}.")
    table = np.stack([np.asarray(array, np.float64) for array in values.values()], axis=1)
    if not np.isfinite(table).all():
        raise ValueError("A value is not finite; a mean over users cannot be given.")
    return table
