"""What alignment stages share: their place in a run, low-rank training, and what they measure.

A stage is one call of `training.fit`, so it saves, resumes and shards like supervised training. Its
loss holds the whole step: reading the histories, rollouts, rewards, and the objective are one
compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from jaxrec.alignment.measure import Measurement
from jaxrec.alignment.policy import Given
from jaxrec.alignment.reward_model import REPORT, FrozenReward, RewardModel
from jaxrec.alignment.rewarding import Rewarding
from jaxrec.backbones.low_rank import LowRank
from jaxrec.files import json_hash, lock, read_json, write_json
from jaxrec.objectives.rewards.drawn import Reward
from jaxrec.parallel import replicated
from jaxrec.training.book import FitResult
from jaxrec.training.loop import fit
from jaxrec.training.optimizers import AdamW
from jaxrec.training.ranking import is_retriever
from jaxrec.training.step import Follow
from jaxrec.training.supervised import StageContext
from jaxrec.types import PyTree, TokenSpace

REFERENCE = "reference"
"""Name of the copy that objectives compare with."""
BEHAVIOUR = "behaviour"
"""Name of the copy that writes rollouts, where it is not the policy itself."""

REWARD = "reward"
"""Folder of the reward model, below that of the stage or what runs share."""

GENTLE = AdamW(learning_rate=1e-4, warmup_steps=10, schedule="constant", weight_decay=0.0)
"""Default optimizer of alignment: small steps, and nothing pulls towards 0."""


class NothingToLearn(ValueError):
    """Training went on without anything to learn from; says why, and what to change."""


@dataclasses.dataclass
class Watch:
    """Ends a run whose rollouts teach nothing, row of metrics after row of metrics."""

    patience: int = 3
    """Rows in a row."""
    idle: int = 0

    def __call__(self, row: dict[str, float]) -> None:
        """Looks at a training row.

        Raises:
            NothingToLearn: `patience` rows in a row without a lesson.
        """
        why = idle_reason(row)
        self.idle = self.idle + 1 if why else 0
        if why and self.idle >= self.patience:
            raise NothingToLearn(f"{why} (for {self.idle} rows of metrics in a row).")


def idle_reason(row: dict[str, float]) -> str | None:
    """Why the steps of a training row taught nothing; None where they did.

    >>> idle_reason({"valid_rollouts": 1.0, "zero_advantage_groups": 0.4}) is None
    True
    """
    if row.get("rewards_not_finite", 0.0) == 1:  # none of them is valid either
        return "every reward is NaN or infinite; look at the reward, and at the reward model"
    if row.get("valid_rollouts", 1.0) == 0:
        return (
            "no rollout names an item: everything is filtered. Set mask_seen=False, or look at the "
            "catalogue"
        )
    if row.get("gated_groups", 0.0) == 1:
        return "the gate sets every reward to 0; lower its threshold, or train the reward model"
    if row.get("zero_advantage_groups", 0.0) == 1:
        return (
            "in every group all rewards are equal, so no rollout is better than another. "
            "Draw more rollouts (rollouts.group) or warmer ones (rollouts.temperature), or take a "
            "reward that tells them apart: an exact match is rare, PrefixMatch is graded"
        )
    if row.get("pairs", 1.0) == 0:
        return "no row has a pair of two different items; take another way to make pairs"
    return None


def check_start(context: StageContext, stage: str) -> None:
    """Refuses what cannot be aligned.

    Raises:
        ValueError: no parameters to start from, those of another network or space, or a network
            that writes no semantic IDs.
    """
    if context.params is None:
        raise ValueError(
            f"{stage} moves a trained generator and found none: put a Supervised stage before it, "
            "or use `jaxrec align RUN`."
        )
    if is_retriever(context.generator):
        raise ValueError(
            f"{stage} needs a generator that writes semantic IDs; "
            f"{type(context.generator).__name__} compares users with items."
        )
    check_reference(context.params, functools.partial(context.generator.init, space=context.space))


def check_reference(params: PyTree, init: Callable[[Array], PyTree]) -> None:
    """Refuses parameters of another network, or of another space of semantic IDs.

    Raises:
        ValueError: a parameter is missing, unexpected, or of another shape.
    """
    wanted, found = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (jax.eval_shape(init, jax.random.key(0)), params)
    )
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"the policy to start from does not fit: parameter {name} is "
                f"{found.get(name, 'missing')} there and {wanted.get(name, 'not known')} here. It "
                "is of another generator, or of semantic IDs of other sizes; start from a run of "
                "this generator and these IDs."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """Where the trained tree of a stage starts, and how it becomes the policy's parameters."""

    context: StageContext
    low_rank: LowRank | None

    @property
    def base(self) -> PyTree | None:
        """What low-rank changes are added to."""
        return self.context.params if self.low_rank is not None else None

    def init(self, key: Array) -> PyTree:
        """The trained tree, drawn."""
        context = self.context
        if self.low_rank is None:
            return context.generator.init(key, context.space)
        return self.low_rank.init(key, self._shapes(), self._axes())

    def axes(self) -> PyTree:
        """Logical axes of the trained tree."""
        if self.low_rank is None:
            return self._axes()
        return self.low_rank.axes(self._shapes(), self._axes())

    def place(self, key: Array, shardings: PyTree) -> PyTree:
        """The trained tree as it starts: the parameters of the stage before, or no change."""
        tree = self.context.params if self.low_rank is None else jax.jit(self.init)(key)
        return jax.device_put(tree, shardings)

    def policy(self, trained: PyTree, given: Given) -> PyTree:
        """Parameters of the policy; a function of the trained tree only."""
        return trained if self.low_rank is None else self.low_rank.apply(given.base, trained)

    def finished(self, result: FitResult) -> FitResult:
        """The result with the parameters that later stages read."""
        if self.low_rank is None:
            return result
        merged = jax.jit(self.low_rank.merge)(self.context.params, result.params)
        return dataclasses.replace(result, params=merged)

    def _axes(self) -> PyTree:
        return self.context.generator.axes(self.context.space)

    def _shapes(self) -> PyTree:
        init = functools.partial(self.context.generator.init, space=self.context.space)
        return jax.eval_shape(init, jax.random.key(0))


def run_stage(stage: Any, context: StageContext) -> FitResult:
    """Runs `Align` or `Prefer`, or resumes it: one call of `fit`, and a measurement of the policy
    before and after it. The reward model's hash is part of what the run is.

    Returns:
        The result with the parameters of the highest validation number.
    """
    check_start(context, type(stage).__name__)
    start = Start(context, stage.low_rank)
    judge = judge_of(context, stage.reward, stage.model)
    shown = judge.rewarding.of(stage.measured or stage.reward)
    given = given_of(context, start, judge)
    policy = stage.policy(context.generator, context.space)
    measurement = Measurement(context, policy, shown, given, stage.validation_cases)
    batches = stage.feed(
        context.histories,
        context.split,
        seed=context.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    manifest = dict(context.manifest)
    if judge.hash is not None:
        manifest["reward_model"] = judge.hash

    def validate(trained: PyTree, step: int) -> dict[str, float]:
        return measurement.validate(start.policy(trained, given), step)

    measurement.keep("before", context.params)
    result = fit(
        stage.loss(policy, start, judge.rewarding),
        start.init,
        start.axes(),
        batches,
        given,
        optimizer=stage.optimizer,
        options=stage.fit,
        mesh=context.mesh,
        folder=context.folder,
        seed=context.seed,
        validate=validate,
        writers=context.writers,
        manifest=manifest,
        start=start.place,
        copies=stage.copies,
        watch=Watch(),
    )
    result = start.finished(result)
    measurement.keep("after", result.params)
    return result


@dataclasses.dataclass(frozen=True)
class Judge:
    """The reward of a stage, with its frozen model where it has one."""

    rewarding: Rewarding
    frozen: FrozenReward | None = None
    hash: str | None = None
    """Of the frozen model."""


def judge_of(context: StageContext, reward: Reward, model: RewardModel | None) -> Judge:
    """The reward of a stage. Its model is trained first, once for all runs beside each other that
    agree about it, and not at all where the stage has ended and was measured."""
    if model is None:
        return Judge(Rewarding(reward))
    report = context.folder / REWARD / REPORT
    if (context.folder / "after.json").is_file() and report.is_file():
        return Judge(Rewarding(reward), hash=str(read_json(report)["hash"]))
    histories = context.manifest.get("histories")
    folder = report.parent
    if context.shared is not None:
        key = json_hash([repr(model), histories, context.split.name, context.seed])
        folder = context.shared / f"{REWARD}-{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock", wait=True):
        frozen = model.train(
            context.histories,
            context.split,
            mesh=context.mesh,
            folder=folder,
            seed=context.seed,
            features=context.tables.features,
            manifest={"histories": histories},
        )
    write_json(report, {**frozen.report, "hash": frozen.hash})
    return Judge(Rewarding(reward, frozen.network, frozen.space), frozen, frozen.hash)


def check_low_rank(
    stage: str, low_rank: LowRank | None, reference: Follow, behaviour: Follow | None
) -> None:
    """Refuses copies that follow where the reference is the policy without its changes.

    Raises:
        ValueError: a copy beside low-rank training.
    """
    if low_rank is not None and (reference != Follow() or behaviour is not None):
        raise ValueError(
            f"{stage}: with low_rank the reference is the policy without its changes, and nothing "
            "else is kept; leave reference and behaviour at their defaults, or train all weights."
        )


def given_of(context: StageContext, start: Start, judge: Judge) -> Given:
    """The arrays of a stage, on every device."""
    given = Given(
        context.tables,
        context.catalogue,
        None if judge.frozen is None else judge.frozen.arrays,
        None if judge.frozen is None else judge.frozen.tables,
        start.base,
    )
    return jax.device_put(given, replicated(context.mesh))


def step_flops(generator: Any, space: TokenSpace, rows: int, length: int, group: int) -> float:
    """FLOPs of an alignment step by formula: the policy reads the history and the group once with
    gradient and writes the group once; the reference reads both once. Rewards are not counted."""
    trained = generator.flops(space, rows, length + group)  # forward and backward: three passes
    return trained * (1 + 2 / 3)
