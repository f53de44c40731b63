"""OneRec-V2's duration-aware feedback: play time among events of like duration (METHODS O20, O23).

Long videos are played longer. So a play is compared only with plays, by the same user, of videos in
the same bucket of duration `b = floor(log_beta(d + eps))`, and its percentile `q` is what counts:

    A = -1 on explicit negative feedback, else +1 if q > tau_B, else 0

where `tau_B` leaves the best quarter of the batch above it. beta and eps are silent in what we
read. The preparations run once, on the host, in float64; the rest on the device.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int32, Real

from jaxrec.objectives.rewards.drawn import Drawn, feature_of, frozen, score_of

DURATION_BUCKET = "duration_bucket"
"""Name of the feature that holds the bucket of every item, int32[n]."""

PLAY_QUANTILES = "play_quantiles"
"""Name of the feature that holds quantiles of everybody's play time, a row a *bucket*."""


def duration_buckets(
    durations: Real[np.ndarray, "*n"], *, beta: float = 2.0, epsilon: float = 1.0
) -> Int32[np.ndarray, "*n"]:
    """`floor(log_beta(d + eps))` of durations in seconds; on the host.

    With an epsilon of at least 1 no bucket is negative.

    Raises:
        ValueError: `beta` not above 1, `epsilon` not above 0, or a duration that is negative or
            not finite.

    >>> import numpy as np
    >>> duration_buckets(np.array([0.0, 2.9, 3.0, 62.9, 63.0])).tolist()
    [0, 1, 2, 5, 6]
    """
    if not beta > 1 or not epsilon > 0:
        raise ValueError(
            f"buckets need beta > 1 and epsilon > 0, got beta={beta}, epsilon={epsilon}."
        )
    shifted = np.asarray(durations, np.float64) + epsilon
    if not np.all((shifted >= epsilon) & np.isfinite(shifted)):
        raise ValueError(
            f"durations must be finite and not negative; {int(np.sum(~(shifted >= epsilon)))} are "
            "below 0 or NaN. Give an item of unknown duration one of its own, such as 0."
        )
    buckets = np.floor(np.log(shifted) / math.log(beta))
    # A quotient of logarithms may miss a whole power: log 1000 / log 10 is below 3.
    buckets += np.power(beta, buckets + 1) <= shifted
    buckets -= np.power(beta, buckets) > shifted
    return buckets.astype(np.int32)


def log_percentiles(
    user: Int32[np.ndarray, " e"],
    bucket: Int32[np.ndarray, " e"],
    play: Real[np.ndarray, " e"],
) -> Float64[np.ndarray, " e"]:
    """Percentile of every event of a log among its user's events in its bucket; on the host.

    The share of them that were played no longer than it: itself is one of them, so the only event
    of a bucket has 1.

    Raises:
        ValueError: a play time that is NaN.

    >>> import numpy as np
    >>> user, bucket = np.array([0, 0, 0, 1], np.int32), np.array([2, 2, 2, 2], np.int32)
    >>> log_percentiles(user, bucket, np.array([5.0, 9.0, 5.0, 1.0])).round(2).tolist()
    [0.67, 1.0, 0.67, 1.0]
    """
    if np.isnan(play).any():
        raise ValueError(f"{int(np.isnan(play).sum())} play times are NaN; leave those events out.")
    order = np.lexsort((play, bucket, user))
    keys = np.stack([user[order], bucket[order]])
    is_first = np.ones(len(order), bool)
    is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(0)
    is_new = is_first.copy()
    is_new[1:] |= play[order][1:] != play[order][:-1]
    sizes = np.diff(np.append(np.flatnonzero(is_first), len(order)))
    starts = np.repeat(np.flatnonzero(is_first), sizes)
    ends = np.append(np.flatnonzero(is_new), len(order))[1:]
    ends = np.repeat(ends, np.diff(np.append(np.flatnonzero(is_new), len(order))))
    result = np.empty(len(order))
    result[order] = (ends - starts) / np.repeat(sizes, sizes)
    return result


def play_quantiles(
    bucket: Int32[np.ndarray, " e"], play: Real[np.ndarray, " e"], *, points: int = 64
) -> Float32[np.ndarray, "k {points}"]:
    """Quantiles of everybody's play time in each bucket, rising; on the host.

    What a user without events in a bucket is compared with. Row `k` holds the play times that
    1/points, 2/points, ... of the events of bucket `k` do not exceed; in a bucket without events,
    those of all events.

    Raises:
        ValueError: no event, a negative bucket, a play time that is NaN, or no point.

    >>> import numpy as np
    >>> bucket = np.array([2, 2, 0, 2, 2], np.int32)
    >>> play_quantiles(bucket, np.array([1.0, 3.0, 8.0, 2.0, 4.0]), points=2).tolist()
    [[8.0, 8.0], [3.0, 8.0], [2.0, 4.0]]
    """
    if not len(play) or bucket.min() < 0 or np.isnan(play).any() or points < 1:
        raise ValueError(
            f"quantiles need events ({len(play)} given) with buckets from 0 on and play times that "
            f"are numbers, and points >= 1 (got {points}); use epsilon >= 1 for the buckets."
        )
    shares = np.arange(1, points + 1) / points
    rows = []
    for each in range(int(bucket.max()) + 1):
        plays = play[bucket == each]
        plays = plays if len(plays) else play
        rows.append(np.quantile(plays, shares, method="inverted_cdf"))
    return np.stack(rows).astype(np.float32)


def own_percentiles(
    play: Float[Array, "b g"],
    bucket: Int32[Array, "b g"],
    history_play: Float[Array, "b t"],
    history_bucket: Int32[Array, "b t"],
    seen: Bool[Array, "b t"],
) -> tuple[Float[Array, "b g"], Int32[Array, "b g"]]:
    """Share of the user's events in the bucket that were played no longer, and their number.

    Args:
        play: seconds.
        bucket: of the duration.
        history_play: seconds of the user's own events; those that are NaN are left out.
        history_bucket: their buckets.
        seen: which of them exist.

    Returns:
        Percentile in [0, 1], 0 where there is no event; number of events compared with.
    """
    counted = seen & ~jnp.isnan(history_play)
    same = counted[:, None, :] & (bucket[..., None] == history_bucket[:, None, :])
    shorter = same & (history_play[:, None, :] <= play[..., None])
    number = jnp.sum(same, axis=-1, dtype=jnp.int32)
    return jnp.sum(shorter, axis=-1) / jnp.maximum(number, 1), number


def common_percentiles(
    play: Float[Array, "b g"], bucket: Int32[Array, "b g"], quantiles: Float[Array, "k m"]
) -> Float[Array, "b g"]:
    """Share of everybody's events in the bucket that were played no longer, to 1/m.

    Args:
        play: seconds.
        bucket: of the duration; one beyond the table reads the table's nearest.
        quantiles: `play_quantiles`.
    """
    rows = jnp.take(quantiles, bucket, axis=0, mode="clip")
    return jnp.mean(rows <= play[..., None], axis=-1)


def best_share_threshold(
    percentiles: Float[Array, "b g"], valid: Bool[Array, "b g"], share: float
) -> Float[Array, ""]:
    """The percentile that a `share` of the valid rollouts of the batch is above, at most.

    NaN where no rollout is valid.
    """
    return jnp.nanquantile(jnp.where(valid, percentiles, jnp.nan), 1.0 - share)


def signed_feedback(
    percentiles: Float[Array, "b g"],
    negative: Bool[Array, "b g"],
    threshold: float | Float[Array, ""],
) -> Float[Array, "b g"]:
    """-1 on explicit negative feedback, else +1 strictly above the threshold, else 0.

    >>> import jax.numpy as jnp
    >>> signed_feedback(jnp.array([[0.9, 0.9, 0.5]]), jnp.array([[True, False, False]]), 0.5)
    Array([[-1.,  1.,  0.]], dtype=float32)
    """
    above = jnp.where(jnp.isnan(percentiles), percentiles, percentiles > threshold)
    return jnp.where(negative, -1.0, above)


@dataclasses.dataclass(frozen=True)
class DurationPercentile:
    """+1 for the best plays of the batch, -1 for what was refused, 0 for all else (OneRec-V2).

    An advantage as it stands: it is not normalised. It reads `features["duration_bucket"]`
    (`duration_buckets`), `features["play_quantiles"]` (for users without an event in the bucket:
    the paper is silent, and everybody's events stand in), `Drawn.history_play`, and two scores,
    logged or foretold. Where an exposure is in the user's history already, it is compared with
    itself too, and alone in its bucket has q = 1.

    Raises:
        ValueError: a share outside (0, 1).
    """

    share: float = 0.25
    """Of the batch that is above the threshold: the top quarter. Fewer where percentiles are equal,
    none where more than the share have 1."""
    play: str = "play_time"
    """Name of the score that holds seconds of play."""
    negative: str = "negative"
    """Name of the score that holds explicit negative feedback; anything above 0 is one."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} must lie in (0, 1).")

    def percentiles(self, drawn: Drawn) -> Float[Array, "b g"]:
        """`q` of every rollout, in [0, 1]; NaN where its play time is.

        Raises:
            ValueError: play times of the history, a score or a feature are missing.
        """
        if drawn.history_play is None:
            raise ValueError(
                "DurationPercentile compares with the user's own plays, but history_play is None. "
                "Give the seconds that each event of the history was played."
            )
        play = score_of(drawn, self.play).astype(jnp.float32)
        buckets = feature_of(drawn, DURATION_BUCKET)
        bucket, history_bucket = (
            jnp.take(buckets, items, mode="clip") for items in (drawn.items, drawn.history)
        )
        own, number = own_percentiles(play, bucket, drawn.history_play, history_bucket, drawn.seen)
        common = common_percentiles(play, bucket, feature_of(drawn, PLAY_QUANTILES))
        return jnp.where(jnp.isnan(play), play, jnp.where(number > 0, own, common))

    def __call__(self, drawn: Drawn, key: Array | None = None) -> Float[Array, "b g"]:
        """Arguments and result as `Reward`; in {-1, 0, 1}.

        Raises:
            ValueError: as `percentiles`.
        """
        del key
        negative = score_of(drawn, self.negative).astype(jnp.float32)
        # A score that is NaN is no zero: it has to be seen in the reward.
        percentiles = jnp.where(jnp.isnan(negative), negative, self.percentiles(drawn))
        threshold = best_share_threshold(percentiles, drawn.valid, self.share)
        return frozen(signed_feedback(percentiles, negative > 0, threshold), drawn.valid)
