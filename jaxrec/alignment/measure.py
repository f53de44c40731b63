"""What alignment changed: rewards and rankings of the same cases, before, on the way, afterwards.

On the way only validation cases are looked at. Before and afterwards the test cases are measured
too, for the report; they choose nothing.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Int64

from jaxrec.alignment.contexts import Context, lay_contexts
from jaxrec.alignment.policy import Given, Policy
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.data.packing import flat_events
from jaxrec.files import write_json
from jaxrec.objectives.rollout_groups import group_mean
from jaxrec.parallel import shard_rows
from jaxrec.tracking import Progress
from jaxrec.training.supervised import RankingValidation, StageContext, ranked_batches
from jaxrec.types import PyTree

MEASURED = ("validation", "test")
EXAMPLES = 8
"""Test cases whose lists are kept."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """Measures a policy of one stage."""

    context: StageContext
    policy: Policy
    rewarding: Rewarding
    given: Given
    cases: int
    """Cases of each part at most, drawn with the recipe's seed; 0 takes all."""

    def validate(self, params: PyTree, step: int) -> dict[str, float]:
        """Ranking metrics and the mean reward of rollouts, on validation cases."""
        ranking = RankingValidation(self.context, self.cases)
        numbers = ranking(params, step)
        rewards = self.rewards(params, ranking.positions(), f"rewards at step {step}")
        return {**numbers, "reward": float(rewards.mean())}

    def rewards(
        self, params: PyTree, positions: Int64[np.ndarray, " c"], describe: str
    ) -> Float[np.ndarray, " c"]:
        """Mean reward of a group of rollouts for each case; equal cases draw equal noise.

        Args:
            params: of the policy.
            positions: flat positions of the targets.
            describe: label of the progress bar.
        """
        context = self.context
        rows, flat = context.rows, flat_events(context.histories)
        found = np.zeros(len(positions), np.float32)
        with jax.set_mesh(context.mesh), Progress(len(positions), describe, unit="users") as bar:
            for first in range(0, len(positions), rows):
                some = positions[first : first + rows]
                filled = np.concatenate([some, np.repeat(some[-1:], rows - len(some))])
                batch = lay_contexts(context.histories, flat, filled, context.history)
                key = jax.random.fold_in(jax.random.key(context.seed), first)
                means = mean_rewards(
                    *(params, self.given, shard_rows(batch, context.mesh), key),
                    policy=self.policy,
                    rewarding=self.rewarding,
                )
                found[first : first + len(some)] = np.asarray(means)[: len(some)]
                bar.update(len(some))
        return found

    def keep(self, name: str, params: PyTree) -> None:
        """Measures a policy once and keeps what was found as NAME.json beside the checkpoints:
        rewards of validation and test cases, one number each, and the lists of some test cases."""
        path = self.context.folder / f"{name}.json"
        if path.is_file():
            return
        parts = {part: self.positions(part) for part in MEASURED}
        rewards = {
            part: self.rewards(params, positions, f"{part} rewards {name}").tolist()
            for part, positions in parts.items()
        }
        shown = parts["test"][:EXAMPLES]
        lists = self.lists(params, shown).tolist()
        write_json(path, {"rewards": rewards, "positions": shown.tolist(), "lists": lists})

    def lists(self, params: PyTree, positions: Int64[np.ndarray, " c"]) -> np.ndarray:
        """The decoder's lists for some cases, int32[c, k], seen items masked."""
        context = self.context
        batches = ranked_batches(
            *(context.histories, positions),
            history=context.history,
            rows=context.rows,
            mask_seen=True,
        )
        found = context.ranker(
            *(params, context.tables, context.catalogue, batches), cases=len(positions)
        )
        return found.items

    def positions(self, part: str) -> Int64[np.ndarray, " c"]:
        """Flat positions of the cases of `validation` or `test` that are measured."""
        if part == "validation":
            return RankingValidation(self.context, self.cases).positions()
        positions = np.asarray(self.context.split.test)
        if not self.cases or self.cases >= len(positions):
            return positions
        draw = np.random.default_rng(self.context.seed).permutation(len(positions))[: self.cases]
        return positions[np.sort(draw)]


@functools.partial(jax.jit, static_argnames=("policy", "rewarding"))
def mean_rewards(
    params: PyTree,
    given: Given,
    batch: Context,
    key: Array,
    *,
    policy: Policy,
    rewarding: Rewarding,
) -> Float[Array, " b"]:
    """Mean reward of a group of rollouts for each history, 0 where none counts.

    Args:
        params: of the policy.
        given: the arrays of the stage.
        batch: histories and what came next.
        key: of the rollouts and of rewards that draw.
        policy: static.
        rewarding: static.
    """
    write_key, reward_key = jax.random.split(key)
    events = batch.events
    functions = policy.read(params, given, events)
    written = policy.write(functions, given, events, write_key)
    log_probs = written.log_probs
    if log_probs is None:
        (log_probs,) = policy.log_probs(functions, given, written.items, policy.filters(events))
    drawn = rewarding.drawn(given, batch, written.items, log_probs.sum(-1))
    rewarded = rewarding(drawn, reward_key)
    return group_mean(rewarded.rewards, rewarded.valid)
