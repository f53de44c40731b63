"""`Align`: reinforcement learning of a generator on what it writes itself (METHODS O18-O22).

Each step is one compiled program: a batch of histories is read, the policy writes a group of items
for each, these are rewarded, and the objective moves the policy. Generators are asked as in
decoding, without dropout, so that the loss scores exactly what was written.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.alignment.contexts import Context, Contexts
from jaxrec.alignment.policy import Given, Norm, Policy, check_norm
from jaxrec.alignment.reward_model import RewardModel
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.alignment.rollouts import Sample
from jaxrec.alignment.stage import (
    BEHAVIOUR,
    GENTLE,
    REFERENCE,
    Start,
    check_low_rank,
    run_stage,
    step_flops,
)
from jaxrec.backbones.low_rank import LowRank
from jaxrec.decoding.filters import Filters
from jaxrec.decoding.interface import StepFunctions
from jaxrec.objectives.rewards.matches import PrefixMatch
from jaxrec.objectives.rollout_groups import ScoredGroup
from jaxrec.training.book import FitResult
from jaxrec.training.loop import FitOptions
from jaxrec.training.step import Follow, LossFunction
from jaxrec.training.supervised import StageContext
from jaxrec.types import PyTree, TokenSpace

SHORT = FitOptions(
    steps=300, validate_every=100, checkpoint_every=100, log_every=10, monitor="reward"
)
"""Default length of alignment; the best step is the one of the highest validation reward."""


@dataclasses.dataclass(frozen=True)
class Align:
    """Moves a trained generator towards what a reward values.

    Raises:
        ValueError: groups too small for the objective, a negative weight, or an unknown option.
    """

    objective: Any
    """A policy objective: GRPO(...), ECPO(...), GBPO(...), GRPOSR(...), Reinforce(...),
    TrajectoryBalance(...)."""
    reward: Any = PrefixMatch()
    """What rollouts are worth; see jaxrec.objectives.rewards."""
    measured: Any = None
    """Another reward to measure before, on the way and afterwards, where the one that teaches does
    not compare: the signs of a batch always have the same mean."""
    model: RewardModel | None = None
    """Is trained first, on training events, calibrated and frozen; what `ModelScore` reads."""
    rollouts: Any = Sample()
    """How groups are written: Sample(...), StochasticBeam(...), Beams(...)."""
    feed: Contexts = Contexts()
    """Histories that are written for."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of what the user did."""
    include_target: bool = False
    """Add what the user did to each group as one more rollout: a positive that nobody has to
    draw."""
    norm: Norm = "trie"
    """Log-probabilities renormalised over the children that exist, as rollouts are drawn; or
    `full`, over the whole codebook."""
    mask_seen: bool = False
    """Rollouts may not name an item of the history."""
    reference: Follow = Follow()
    """How the reference follows the policy: not at all, or every so many steps (MiniOneRec: 512
    steps, a share of .6). Kept only where the objective has a divergence from it."""
    behaviour: Follow | None = None
    """How the copy that writes rollouts follows the policy (OneRec: every 1000 steps); None writes
    with the policy itself."""
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
        if self.nll < 0:
            raise ValueError(f"Align: nll={self.nll} must not be negative.")
        if self.rollouts.group + self.include_target < 2:
            raise ValueError(
                f"Align: a group of {self.rollouts.group} rollout has nothing to compare with; use "
                "rollouts.group >= 2."
            )
        check_low_rank("Align", self.low_rank, self.reference, self.behaviour)

    @property
    def selected_on(self) -> str:
        """What chose the checkpoint, for the protocol."""
        return f"validation {self.fit.monitor}" if self.fit.validate_every else "the last step"

    @property
    def copies(self) -> dict[str, Follow]:
        """Copies of the policy that the training state keeps."""
        kept = {}
        if self._compares and self.low_rank is None:
            kept[REFERENCE] = self.reference
        if self.behaviour is not None:
            kept[BEHAVIOUR] = self.behaviour
        return kept

    @property
    def _compares(self) -> bool:
        return getattr(self.objective, "kl", 0.0) > 0

    def policy(self, generator: Any, space: TokenSpace) -> Policy:
        """The generator as this stage asks it."""
        return Policy(generator, space, self.rollouts, self.norm, self.mask_seen)

    def flops(self, generator: Any, space: TokenSpace) -> float:
        """FLOPs of a step by formula, rewards aside."""
        return step_flops(generator, space, *self.feed.batch_shape, self.rollouts.group)

    def loss(self, policy: Policy, start: Start, rewarding: Rewarding) -> LossFunction:
        """The whole step up to the gradient, as a training step takes it."""

        def loss(
            trained: PyTree, given: Given, batch: Context, key: Array, copies: PyTree | None = None
        ) -> tuple[Array, Array, dict]:
            copies = copies or {}
            params = start.policy(trained, given)
            group, target, more = self.group(policy, rewarding, params, given, batch, key, copies)
            total, weight, metrics = self.objective(group)
            known = jnp.isfinite(target)
            nll = -jnp.sum(jnp.where(known, target, 0.0))
            count = jnp.sum(known, dtype=jnp.float32)
            if self.nll:
                # The mean over histories, whatever the number of groups that count.
                total += self.nll * nll * weight / jnp.maximum(count, 1.0)
            told = {"nll_target": (jax.lax.stop_gradient(nll), count)}
            return total, weight, {**metrics, **more, **told}

        return loss

    def group(
        self,
        policy: Policy,
        rewarding: Rewarding,
        params: PyTree,
        given: Given,
        batch: Context,
        key: Array,
        copies: dict[str, PyTree],
    ) -> tuple[ScoredGroup, Float[Array, " b"], dict[str, tuple[Array, Array]]]:
        """Writes, rewards and scores a group for each history.

        Returns:
            The groups; the log-probability of what the user did, -inf where that is no item; and
            metrics of the rollouts.
        """
        write_key, reward_key = jax.random.split(key)
        events, filters = batch.events, policy.filters(batch.events)
        ours = policy.read(params, given, events)
        still = policy.still(ours, params)
        writer = still
        if self.behaviour is not None:
            older = jax.lax.stop_gradient(copies[BEHAVIOUR])
            writer = policy.still(policy.read(older, given, events), older)
        written = policy.write(writer, given, events, write_key)
        items, known = written.items, batch.target[:, None]
        if self.include_target:
            items = jnp.concatenate([items, known], axis=1)
        log_probs, other = policy.log_probs(ours, given, items, filters, self._norms)
        # What the user did may be filtered; then it is no rollout, as nothing could write it.
        items = jnp.where(jnp.isfinite(jax.lax.stop_gradient(log_probs[..., 0])), items, -1)
        (target,) = policy.log_probs(ours, given, known, Filters())
        behaviour = jax.lax.stop_gradient(log_probs)
        if self.behaviour is not None:
            behaviour = self._behaviour(policy, writer, written.log_probs, given, items, filters)
        reference = log_probs
        if self._compares:
            older = copies.get(REFERENCE, given.base)
            (reference,) = policy.log_probs(
                policy.read(older, given, events), given, items, filters
            )
        whole = jnp.sum(behaviour, axis=-1)
        rewarded = rewarding(rewarding.drawn(given, batch, items, whole), reward_key)
        group = ScoredGroup(
            log_probs, behaviour, reference, rewarded.rewards, rewarded.valid, rewarded.positive
        )
        more = {
            "rewards_not_finite": rewarded.not_finite,
            "legality": legality(log_probs, other, self.norm, items >= 0),
        }
        return group, jnp.sum(target, axis=-1)[:, 0], more

    @property
    def _norms(self) -> tuple[Norm, Norm]:
        return self.norm, "full" if self.norm == "trie" else "trie"

    def _behaviour(
        self,
        policy: Policy,
        writer: StepFunctions,
        told: Array | None,
        given: Given,
        items: Array,
        filters: Filters,
    ) -> Float[Array, "b g l"]:
        """Log-probabilities under older weights, of their own telling where they tell."""
        if told is None or self.norm != "trie" or self.include_target:
            (told,) = policy.log_probs(writer, given, items, filters)
        return jax.lax.stop_gradient(told)

    def run(self, context: StageContext) -> FitResult:
        """Aligns, or resumes, and returns the parameters of the highest validation number."""
        return run_stage(self, context)


def legality(
    log_probs: Float[Array, "b g l"],
    other: Float[Array, "b g l"],
    norm: Norm,
    valid: Bool[Array, "b g"],
) -> tuple[Array, Array]:
    """Share of what the model writes without the catalogue that would be an item: a metric.

    With Z the mass of legal codes at each level, the sum over items of `prod p` is the mean of
    `prod Z` over items drawn from the renormalised model, and `Z = p / (p / Z)`. Exact in the mean
    for independent draws of the policy at temperature 1 without filters; for other groups it is the
    mean over the group.

    Args:
        log_probs: of rollouts, in the normalisation `norm`.
        other: in the other one.
        valid: rollouts that name an item, whatever their reward.
    """
    mass = jnp.sum(log_probs - other, axis=-1) * (1.0 if norm == "full" else -1.0)
    mass = jax.lax.stop_gradient(jnp.where(valid, jnp.exp(jnp.minimum(mass, 0.0)), 0.0))
    return jnp.sum(mass), jnp.sum(valid, dtype=jnp.float32)
