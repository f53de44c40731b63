"""`RewardModel`: learns what users do with items, calibrates it, and freezes it (METHODS B23).

`PreferenceModel` on labelled feedback, towers and P-Score together, each by cross-entropy (OneRec,
arXiv:2506.13695). Users are parted in three: most train, some choose the checkpoint and calibrate,
some are only measured; held-out events of the split are read by none. The result is frozen: scores
have no gradient, and a hash of everything they follow from goes into the run that uses them.

The network knows items by their numbers, whatever semantic IDs the generator writes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from jaxrec.alignment.calibration import Scaling, calibrated, fit_platt, identity
from jaxrec.alignment.feedback import Graded, Parts, part_users
from jaxrec.alignment.questions import Labelled
from jaxrec.alignment.reward_quality import (
    P_SCORE,
    Judged,
    judge_candidates,
    mixed_labels,
    task_report,
    validation_numbers,
)
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Split, training_counts
from jaxrec.files import json_hash, write_json
from jaxrec.objectives.multi_task import multi_task_loss
from jaxrec.tracking import MetricWriter
from jaxrec.training.loop import FitOptions, fit
from jaxrec.training.optimizers import AdamW
from jaxrec.training.step import LossFunction
from jaxrec.types import Events, PyTree, Tables, TokenSpace

REPORT = "reward.json"

CALIBRATIONS = ("platt", "none")


class RewardArrays(NamedTuple):
    """All numbers of a frozen reward: an argument of the program that uses it, never a constant."""

    params: PyTree
    """Of the network."""
    scaling: Scaling
    """Of every task's logit, then of the P-Score."""


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenReward:
    """A trained reward model that nothing changes any more."""

    network: PreferenceModel
    space: TokenSpace
    """Sparse item ids."""
    arrays: RewardArrays
    tables: Tables
    """Item numbers and the features that the network reads."""
    actions: tuple[str, ...]
    """Kinds of events; those that it is given later must be numbered likewise."""
    report: dict[str, Any]
    """Split, users, and quality of every task on users that were only measured. JSON-able."""
    hash: str
    """SHA-256 of the component, the kinds of events, and the bytes of all arrays."""


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """How a reward is trained, calibrated and measured.

    Raises:
        ValueError: tasks of network and feedback that differ, weights that do not belong to them,
            a share outside (0, 1), an unknown calibration, or candidates that read each other.
    """

    network: PreferenceModel = PreferenceModel()
    feedback: Any = Graded()
    """Graded(...) for logs with exposures, Implicit(...) for logs with one kind of event."""
    optimizer: Any = AdamW()
    fit: FitOptions = FitOptions(steps=2000, patience=3, monitor="-loss")
    """Steps, validation, early stopping. Validation tells `loss`, `auc` (mean over tasks) and
    `auc_TASK`, of the users that calibrate."""
    task_weight: tuple[float, ...] = ()
    """Of each task, in the towers' loss and in what the P-Score is trained on; empty: 1 each."""
    calibration: str = "platt"
    """`platt` fits slope and offset of every logit on users that did not train; `none` leaves the
    probabilities that training gave."""
    held_out: float = 0.2
    """Share of the users that do not train: half of them calibrate, half are only measured."""
    windows: int = 4096
    """Windows of either half that are read at most, drawn with the seed; 0 reads all."""

    def __post_init__(self) -> None:
        if self.network.tasks != self.feedback.tasks:
            raise ValueError(
                f"RewardModel: the network has tasks {self.network.tasks} and the feedback "
                f"{self.feedback.tasks}; give both the same, in the same order."
            )
        if P_SCORE in self.network.tasks:
            raise ValueError(f"RewardModel: {P_SCORE!r} names the score for everything, no task.")
        if self.network.list_layers:
            raise ValueError(
                f"RewardModel: network.list_layers={self.network.list_layers} would make a reward "
                "depend on the other candidates of its group, which nobody sees together. Use 0."
            )
        weights = self.task_weight
        if weights and (
            len(weights) != len(self.network.tasks) or min(weights) < 0 or not any(weights)
        ):
            raise ValueError(
                f"RewardModel: task_weight={weights} needs one number for each of "
                f"{self.network.tasks}, none negative and not all 0."
            )
        if not 0 < self.held_out < 1 or self.windows < 0:
            raise ValueError(
                f"RewardModel: held_out={self.held_out} lies in (0, 1), and "
                f"windows={self.windows} is not negative."
            )
        if self.calibration not in CALIBRATIONS:
            raise ValueError(
                f"RewardModel: calibration={self.calibration!r} is unknown; choose one of "
                f"{', '.join(CALIBRATIONS)}."
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each task."""
        return self.task_weight or (1.0,) * len(self.network.tasks)

    @property
    def described(self) -> dict[str, Any]:
        """All that the reward is, JSON-able; not how long it was trained, which its arrays tell."""
        content = describe(self)
        del content["fit"]
        return content

    def loss(self, space: TokenSpace) -> LossFunction:
        """Cross-entropy of towers and P-Score on `Labelled` batches, for a training step."""

        def loss(params: PyTree, tables: Tables, batch: Labelled, key: Array) -> Any:
            answer = self.network.forward(
                params, tables, batch.events, batch.candidates, space, place=batch.place, key=key
            )
            labels, weight = batch.labels, batch.weight
            return preference_loss(
                answer.logits, answer.score, labels, weight, self.weights, self.network.tasks
            )

        return loss

    def train(
        self,
        histories: Histories,
        split: Split,
        *,
        mesh: Mesh,
        folder: Path | str,
        seed: int = 0,
        features: Mapping[str, Any] | None = None,
        writers: Sequence[MetricWriter] = (),
        manifest: Mapping[str, Any] | None = None,
    ) -> FrozenReward:
        """Trains, or goes on training what the folder holds, then calibrates, measures and freezes.

        The folder holds what `fit` leaves there, and `reward.json`: report and hash. The same call
        on a finished folder gives the same reward without training.

        Args:
            histories: the log.
            split: only its training events are read.
            mesh: where.
            folder: of this reward model alone.
            seed: of parts, parameters, order and draws.
            features: arrays with a row an item, as the network reads them.
            writers: more places for the metric rows.
            manifest: JSON-able; what the data depend on.

        Raises:
            DataError: too few users or events, tasks that the log cannot tell apart.
            ValueError: fewer kinds of actions in the network than in the log.
            RunMismatch: the folder holds another reward model.
        """
        self._check_actions(histories.actions)
        space, tables = sparse_items(histories.num_items, features)
        parts = part_users(histories, split, share=self.held_out, seed=seed)
        sources = {
            "reward_model": self.described,
            "actions": list(histories.actions),
            "features": tree_hash(tables.features),
        }
        judge = functools.partial(judge_candidates, self.network, space, tables=tables, mesh=mesh)
        held, measured = (self._held(histories, part, seed) for part in parts[1:])
        batches = self.feedback(
            histories, parts.train, seed=seed, host=jax.process_index(), hosts=jax.process_count()
        )

        def validate(params: PyTree, step: int) -> dict[str, float]:
            del step
            return validation_numbers(judge(params, held), self.network.tasks, self.weights)

        result = fit(
            self.loss(space),
            lambda key: self.network.init(key, space),
            self.network.axes(space),
            batches,
            tables,
            optimizer=self.optimizer,
            options=self.fit,
            mesh=mesh,
            folder=folder,
            seed=seed,
            validate=validate,
            writers=writers,
            manifest={**sources, "data": dict(manifest or {})},
        )
        scaling = self._calibrate(judge(result.params, held))
        report = {
            "split": split.name,
            "seed": seed,
            "users": _count_users(histories, parts),
            "steps": int(result.state.step),
            "best_step": result.best_step,
            "calibration": self.calibration,
            "tasks": task_report(judge(result.params, measured), scaling, self.network.tasks),
        }
        arrays = RewardArrays(result.params, Scaling(*map(jnp.asarray, scaling)))
        content = content_hash(sources, space, arrays)
        if jax.process_index() == 0:
            write_json(Path(folder) / REPORT, {**report, "hash": content})
        return FrozenReward(self.network, space, arrays, tables, histories.actions, report, content)

    def _held(self, histories: Histories, part: Split, seed: int) -> list[Labelled]:
        held = list(self.feedback.once(histories, part, seed=seed, most=self.windows))
        if not held:
            raise DataError(
                f"no event of {part.name} can be asked about: all are too early in their history "
                "or before `since`. Lower these, or raise held_out."
            )
        return held

    def _calibrate(self, judged: Judged) -> Scaling:
        """Of every logit, on users that did not train."""
        count = judged.logits.shape[1]
        if self.calibration == "none":
            return identity(count)
        mixed, weight = mixed_labels(judged, self.weights)
        labels = np.concatenate([judged.labels, mixed[:, None]], axis=1)
        weights = np.concatenate([judged.weight, weight[:, None]], axis=1)
        fitted = [fit_platt(judged.logits[:, k], labels[:, k], weights[:, k]) for k in range(count)]
        slope, offset = np.asarray(fitted, np.float32).T
        return Scaling(slope, offset)

    def _check_actions(self, actions: tuple[str, ...]) -> None:
        if 1 < self.network.actions < len(actions):
            raise ValueError(
                f"RewardModel: network.actions={self.network.actions}, but the log has "
                f"{len(actions)} kinds of events ({', '.join(actions)}); set {len(actions)}, or 1 "
                "to tell none apart."
            )


def reward_scores(
    network: PreferenceModel,
    arrays: RewardArrays,
    tables: Tables,
    events: Events,
    items: Int32[Array, "b g"],
    space: TokenSpace,
) -> dict[str, Float[Array, "b g"]]:
    """What each user would do with each item: rewards in [0, 1], without a gradient.

    Pure, for a place inside a larger compiled program; `network` and `space` are static.

    Args:
        network: of a `FrozenReward`, as are `arrays`, `tables` and `space`.
        events: one history a row; empty ones are welcome.
        items: catalogue rows. Each is judged alone: the order and the others of a row do not
            matter.

    Returns:
        Calibrated probability of each task, and `p_score`, that of the tasks' weighted mean; 0 for
        numbers that are no item.
    """
    known = (items >= 0) & (items < tables.codes.shape[0])
    answer = network.forward(arrays.params, tables, events, jnp.where(known, items, -1), space)
    logits = jnp.concatenate([answer.logits, answer.score[..., None]], axis=-1)
    chance = jnp.where(known[..., None], calibrated(logits, arrays.scaling), 0.0)
    chance = jax.lax.stop_gradient(chance)
    return {name: chance[..., k] for k, name in enumerate((*network.tasks, P_SCORE))}


def sparse_items(
    items: int, features: Mapping[str, Any] | None = None
) -> tuple[TokenSpace, Tables]:
    """The token space and tables of a network that knows items by their numbers."""
    codes = jnp.arange(items, dtype=jnp.int32)[:, None]
    arrays = {name: jnp.asarray(array) for name, array in (features or {}).items()}
    return TokenSpace((items,)), Tables(codes, arrays)


def preference_loss(
    logits: Float[Array, "b c k"],
    score: Float[Array, "b c"],
    labels: Float[Array, "b c k"],
    weight: Float[Array, "b c k"],
    task_weight: tuple[float, ...],
    tasks: tuple[str, ...],
) -> tuple[Array, Array, dict[str, tuple[Array, Array]]]:
    """Sum of the weighted cross-entropies of towers and P-Score, and the weight of the labels.

    Args:
        logits: of the towers.
        score: the P-Score's logit, trained on all labels.
        labels: 0 or 1; anything where the weight is 0.
        weight: of each label.
        task_weight: of each task.
        tasks: their names, for the metrics.

    Returns:
        Sum, weight, and metrics `loss_TASK` (without task weight) and `loss_p_score`.
    """
    weights = weight * jnp.asarray(task_weight, jnp.float32)

    def entropy(logits: Array, labels: Array, weight: Array) -> tuple[Array, Array]:
        # A label is an example of its own: weights are by label, and not only by candidate.
        known, one = (weight > 0)[..., None], jnp.ones(1)
        return multi_task_loss(logits[..., None], labels[..., None], known, one, weight)

    towers, total = entropy(logits, labels, weights)
    fused, _ = entropy(jnp.broadcast_to(score[..., None], labels.shape), labels, weights)
    metrics = {
        f"loss_{task}": entropy(logits[..., k], labels[..., k], weight[..., k])
        for k, task in enumerate(tasks)
    }
    return towers + fused, total, {**metrics, f"loss_{P_SCORE}": (fused, total)}


def _count_users(histories: Histories, parts: Parts) -> dict[str, int]:
    return {
        name: int((training_counts(histories, part) > 0).sum())
        for name, part in parts._asdict().items()
    }


def content_hash(sources: Mapping[str, Any], space: TokenSpace, arrays: RewardArrays) -> str:
    """What identifies a frozen reward.

    Args:
        sources: JSON-able: the component, the kinds of events, the features.
        space: the catalogue.
        arrays: all numbers.
    """
    return json_hash({**sources, "items": space.sizes[0], "arrays": tree_hash(arrays)})


def describe(component: Any) -> Any:
    """A component as JSON, with the names of its classes: what the hash of a reward reads."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        fields = {
            field.name: describe(getattr(component, field.name))
            for field in dataclasses.fields(component)
        }
        return {"class": type(component).__name__, **fields}
    if isinstance(component, tuple):
        return [describe(each) for each in component]
    return component


def tree_hash(tree: PyTree) -> str:
    """SHA-256 over names, types, shapes and bytes of all arrays of a tree."""
    leaves = [
        (jax.tree_util.keystr(path), np.ascontiguousarray(jax.device_get(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return json_hash(
        [
            [name, str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
            for name, array in leaves
        ]
    )
