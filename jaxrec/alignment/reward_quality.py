"""How good a reward model is on users that it was not trained on: order and calibration."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec.alignment.calibration import Scaling, calibrated
from jaxrec.alignment.questions import Labelled
from jaxrec.backbones.preference import PreferenceModel
from jaxrec.evaluation.classification import (
    auc,
    calibration_error,
    expected_over_observed,
    grouped_auc,
)
from jaxrec.parallel import shard_rows
from jaxrec.types import PyTree, Tables, TokenSpace

P_SCORE = "p_score"
"""Name of the score for everything among the rewards."""


class Judged(NamedTuple):
    """Candidates that exist, with what the network said and what happened; numpy."""

    logits: Float[np.ndarray, "c m"]
    """Of every task, then the P-Score; float64."""
    labels: Float[np.ndarray, "c k"]
    weight: Float[np.ndarray, "c k"]
    user: Int[np.ndarray, " c"]


def judge_candidates(
    network: PreferenceModel,
    space: TokenSpace,
    params: PyTree,
    batches: Iterable[Labelled],
    *,
    tables: Tables,
    mesh: Mesh,
) -> Judged:
    """The network's answers to labelled batches.

    Args:
        network: static.
        space: static, of sparse item ids.
        params: of the network.
        batches: this host's numpy batches.
        tables: what the network reads about items.
        mesh: where.
    """
    parts = []
    with jax.set_mesh(mesh):
        for batch in batches:
            placed = shard_rows(batch, mesh)
            logits = np.asarray(_answers(params, tables, placed, network=network, space=space))
            live = batch.candidates >= 0
            user = np.take_along_axis(np.asarray(batch.events.user), batch.place, axis=1)
            parts.append((logits[live], batch.labels[live], batch.weight[live], user[live]))
    logits, labels, weight, user = (np.concatenate(each) for each in zip(*parts))
    return Judged(logits.astype(np.float64), labels, weight, user)


@functools.partial(jax.jit, static_argnames=("network", "space"))
def _answers(
    params: PyTree,
    tables: Tables,
    batch: Labelled,
    *,
    network: PreferenceModel,
    space: TokenSpace,
) -> Float[Array, "b c m"]:
    answer = network.forward(
        params, tables, batch.events, batch.candidates, space, place=batch.place
    )
    return jnp.concatenate([answer.logits, answer.score[..., None]], axis=-1)


def mixed_labels(
    judged: Judged, task_weight: tuple[float, ...]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """What the P-Score stands for: the weighted mean of a candidate's labels, and its weight."""
    weights = judged.weight * np.asarray(task_weight)
    weight = weights.sum(axis=1)
    return (weights * judged.labels).sum(axis=1) / np.where(weight > 0, weight, 1.0), weight


def validation_numbers(
    judged: Judged, tasks: tuple[str, ...], task_weight: tuple[float, ...]
) -> dict[str, float]:
    """Mean cross-entropy of towers and P-Score together, as in training, and AUC.

    A task without both labels has no AUC, and is not in the mean; without any such task there is no
    `auc`.
    """
    weights = judged.weight * np.asarray(task_weight)
    numbers = {"loss": 0.0}
    for logits in (judged.logits[:, :-1], judged.logits[:, -1:]):
        losses = np.logaddexp(0.0, logits) - judged.labels * logits
        numbers["loss"] += float((weights * losses).sum() / max(weights.sum(), 1e-9))
    found = {}
    for k, task in enumerate(tasks):
        known = judged.weight[:, k] > 0
        labels = judged.labels[known, k] > 0.5
        if labels.any() and not labels.all():
            found[f"auc_{task}"] = auc(judged.logits[known, k], labels)
    mean = {"auc": float(np.mean(list(found.values())))} if found else {}
    return {**numbers, **mean, **found}


def task_report(judged: Judged, scaling: Scaling, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Quality of every task on the candidates whose label is known, each counting once.

    Returns:
        For each task: `cases`, `positives`; `auc`, `gauc` (by user) of its logit, `p_score_auc`,
        `p_score_gauc` of the P-Score; `ece_before` and `ece_after` calibration (10 bins of equal
        mass); `ratio_before`, `ratio_after`: expected over observed. None where it is not defined:
        a task without both labels, in all or in any user.
    """
    after = np.asarray(calibrated(jnp.asarray(judged.logits, jnp.float32), scaling))
    before = np.asarray(jax.nn.sigmoid(jnp.asarray(judged.logits, jnp.float32)))
    report = {}
    for k, task in enumerate(tasks):
        known = judged.weight[:, k] > 0
        labels, user = judged.labels[known, k] > 0.5, judged.user[known]
        row: dict[str, Any] = {"cases": int(known.sum()), "positives": int(labels.sum())}
        for prefix, column in (("", k), (f"{P_SCORE}_", -1)):
            logits, one = judged.logits[known, column], np.zeros(len(user), np.int64)
            both, inside = _has_both(labels, one), _has_both(labels, user)
            row[f"{prefix}auc"] = auc(logits, labels) if both else None
            row[f"{prefix}gauc"] = grouped_auc(logits, labels, user) if inside else None
        for name, chances in (("before", before), ("after", after)):
            chance = chances[known, k]
            error = calibration_error(chance, labels, kind="mass") if len(chance) else None
            row[f"ece_{name}"] = error
            row[f"ratio_{name}"] = expected_over_observed(chance, labels) if labels.any() else None
        report[task] = row
    return report


def _has_both(labels: Bool[np.ndarray, " c"], groups: Int[np.ndarray, " c"]) -> bool:
    """Whether any group has a positive and a negative."""
    return bool(np.isin(groups[labels], groups[~labels]).any())
