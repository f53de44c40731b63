"""`Prefer`: alignment by pairs of a chosen and rejected items, the DPO family (METHODS O12-O17)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.alignment.align import SHORT
from jaxrec.alignment.contexts import Context, Contexts
from jaxrec.alignment.pair_file import PairContext, PairFile
from jaxrec.alignment.pairs import Maker, Paired, RandomRejected
from jaxrec.alignment.policy import Given, Norm, Policy, check_norm
from jaxrec.alignment.reward_model import RewardModel
from jaxrec.alignment.rewarding import Rewarded, Rewarding
from jaxrec.alignment.rollouts import Sample
from jaxrec.alignment.stage import (
    GENTLE,
    REFERENCE,
    Start,
    check_low_rank,
    run_stage,
    step_flops,
)
from jaxrec.backbones.low_rank import LowRank
from jaxrec.decoding.filters import Filters
from jaxrec.objectives.preference_pairs import ScoredPairs, counted
from jaxrec.objectives.rewards.matches import PrefixMatch
from jaxrec.training.book import FitResult
from jaxrec.training.loop import FitOptions
from jaxrec.training.step import Follow, LossFunction
from jaxrec.training.supervised import StageContext
from jaxrec.types import PyTree, TokenSpace


@dataclasses.dataclass(frozen=True)
class Prefer:
    """Moves a trained generator towards chosen and away from rejected items.

    Raises:
        ValueError: a negative weight, an unknown option, or rewards without a group.
    """

    objective: Any
    """A preference objective: DPO(...), SDPO(...), RosePO(...), WeightedDPO(...), ListDPO(...)."""
    pairs: Any = RandomRejected()
    """How pairs are made on the fly: RandomRejected(...), PrefixRejected(...), SelfPlay(),
    BestAndWorst(), BestAgainstAll(). Not asked where the feed brings them."""
    reward: Any = PrefixMatch()
    """What ranks rollouts where pairs are made of them, and what is measured."""
    measured: Any = None
    """Another reward to measure before, on the way and afterwards, where the one that teaches does
    not compare: the signs of a batch always have the same mean."""
    model: RewardModel | None = None
    """Is trained first, on training events, calibrated and frozen; what `ModelScore` reads."""
    rollouts: Any = Sample()
    """How rollouts are written where pairs are made of them."""
    feed: Contexts | PairFile = Contexts()
    """Histories to make pairs for, or PairFile(...) with pairs that were made beforehand."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of what the user did (IPA trains both together)."""
    smoothing: float = 0.0
    """Probability that a preference is the wrong way round, for RosePO."""
    norm: Norm = "trie"
    """Log-probabilities renormalised over the children that exist, or `full`, over the codebook."""
    mask_seen: bool = False
    """Rollouts may not name an item of the history."""
    reference: Follow = Follow()
    """How the reference follows the policy: not at all, or every so many steps (SPRec and IPA: at
    the end of a round)."""
    low_rank: LowRank | None = None
    """Train a low-rank change only; the reference is the policy without it."""
    optimizer: Any = GENTLE
    fit: FitOptions = SHORT
    validation_cases: int = 500
    """Cases on which rewards and rankings are measured before, on the way and afterwards."""

    aligns: ClassVar[bool] = True
    """Goes on from a trained generator, and asks it as decoding does."""

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.nll < 0 or not 0 <= self.smoothing <= 0.5:
            raise ValueError(
                f"Prefer needs nll >= 0 and smoothing in [0, .5], got {self.nll} and "
                f"{self.smoothing}."
            )
        check_low_rank("Prefer", self.low_rank, self.reference, None)

    @property
    def selected_on(self) -> str:
        """What chose the checkpoint, for the protocol."""
        return f"validation {self.fit.monitor}" if self.fit.validate_every else "the last step"

    @property
    def copies(self) -> dict[str, Follow]:
        """Copies of the policy that the training state keeps."""
        return {} if self.low_rank is not None else {REFERENCE: self.reference}

    def policy(self, generator: Any, space: TokenSpace) -> Policy:
        """The generator as this stage asks it."""
        return Policy(generator, space, self.rollouts, self.norm, self.mask_seen)

    def flops(self, generator: Any, space: TokenSpace) -> float:
        """FLOPs of a step by formula, rewards aside."""
        return step_flops(generator, space, *self.feed.batch_shape, self.rollouts.group)

    def loss(self, policy: Policy, start: Start, rewarding: Rewarding) -> LossFunction:
        """The whole step up to the gradient, as a training step takes it."""

        def loss(
            trained: PyTree,
            given: Given,
            batch: Context | PairContext,
            key: Array,
            copies: PyTree | None = None,
        ) -> tuple[Array, Array, dict]:
            params = start.policy(trained, given)
            older = (copies or {}).get(REFERENCE, given.base)
            pairs, target = self.scored(policy, rewarding, params, older, given, batch, key)
            total, weight, metrics = self.objective(pairs)
            known = jnp.isfinite(target)
            nll, count = -jnp.sum(jnp.where(known, target, 0.0)), jnp.sum(known, dtype=jnp.float32)
            if self.nll:
                total += self.nll * nll * weight / jnp.maximum(count, 1.0)
            rows = jnp.asarray(len(known), jnp.float32)
            told = {
                "nll_target": (jax.lax.stop_gradient(nll), count),
                "pairs": (jnp.sum(jnp.any(counted(pairs), axis=1), dtype=jnp.float32), rows),
            }
            return total, weight, {**metrics, **told}

        return loss

    def scored(
        self,
        policy: Policy,
        rewarding: Rewarding,
        params: PyTree,
        reference: PyTree,
        given: Given,
        batch: Context | PairContext,
        key: Array,
    ) -> tuple[ScoredPairs, Float[Array, " b"]]:
        """Makes the pairs of a batch and scores them under policy and reference.

        Returns:
            The pairs, and the log-probability of what the user did, -inf where that is no item.
        """
        events = batch.events
        ours = policy.read(params, given, events)
        paired = self._paired(policy, rewarding, params, ours, given, batch, key)
        items = jnp.concatenate([paired.chosen[:, None], paired.rejected], axis=1)
        both = jnp.concatenate([items, batch.target[:, None]], axis=1)
        (log_probs,) = policy.log_probs(ours, given, both, Filters())
        older = policy.read(jax.lax.stop_gradient(reference), given, events)
        (theirs,) = policy.log_probs(older, given, items, Filters())
        whole, theirs = jnp.sum(log_probs, axis=-1), jnp.sum(theirs, axis=-1)
        target, whole = whole[:, -1], whole[:, :-1]
        exists = jnp.isfinite(jax.lax.stop_gradient(whole)) & jnp.isfinite(theirs)
        pairs = ScoredPairs(
            chosen=whole[:, 0],
            rejected=whole[:, 1:],
            reference_chosen=theirs[:, 0],
            reference_rejected=theirs[:, 1:],
            valid=exists[:, :1] & exists[:, 1:],
            equal=self._equal(given, paired),
            gap=paired.gap,
            smoothing=jnp.full(target.shape, self.smoothing),
        )
        return pairs, target

    def _equal(self, given: Given, paired: Paired) -> Array:
        """Pairs whose sides have one semantic ID: nothing tells them apart."""
        codes = jnp.take(given.tables.codes, jnp.maximum(paired.chosen, 0), axis=0)
        other = jnp.take(given.tables.codes, jnp.maximum(paired.rejected, 0), axis=0)
        return jnp.all(codes[:, None] == other, axis=-1)

    def _paired(
        self,
        policy: Policy,
        rewarding: Rewarding,
        params: PyTree,
        ours: Any,
        given: Given,
        batch: Context | PairContext,
        key: Array,
    ) -> Paired:
        if isinstance(batch, PairContext):
            return Paired(batch.chosen, batch.rejected, batch.gap)
        still = policy.still(ours, params)

        def write(key: Array) -> Int32[Array, "b g"]:
            return policy.write(still, given, batch.events, key).items

        def reward(items: Int32[Array, "b g"], key: Array) -> Rewarded:
            filters = policy.filters(batch.events)
            (log_probs,) = policy.log_probs(still, given, items, filters)
            drawn = rewarding.drawn(given, batch, items, jnp.sum(log_probs, axis=-1))
            return rewarding(drawn, key)

        return self.pairs(Maker(given, write, reward), batch, key)

    def run(self, context: StageContext) -> FitResult:
        """Aligns, or resumes, and returns the parameters of the highest validation number."""
        return run_stage(self, context)
