"""Supervised training of a generator: the first stage of every recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.data.cases import case_batches
from jaxrec.data.histories import Histories
from jaxrec.data.instruction_feed import ItemTexts
from jaxrec.data.pipeline import UserCentric
from jaxrec.data.splits import Split
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.ranking import ranks_in_lists
from jaxrec.tracking import MetricWriter
from jaxrec.training.loop import FitOptions, FitResult, fit
from jaxrec.training.optimizers import AdamW
from jaxrec.training.ranking import Ranker, denied_width, is_retriever, pad_denied
from jaxrec.training.step import LOAD, LossFunction, Rebalance
from jaxrec.types import Events, PyTree, Tables, TextBatch, TokenSpace

CUTOFFS = (10, 50)
"""List lengths that validation reports, as far as the decoder's lists reach."""


@dataclasses.dataclass(frozen=True, eq=False)
class StageContext:
    """What a training stage is given: the generator, the items, the log, and its place."""

    generator: Any
    space: TokenSpace
    tables: Tables
    catalogue: Catalogue
    ranker: Ranker
    histories: Histories
    split: Split
    history: int
    """Events of a history that validation reads."""
    rows: int
    """Histories that validation decodes at once."""
    mesh: Mesh
    folder: Path
    """Where the stage keeps its checkpoints."""
    writers: tuple[MetricWriter, ...]
    seed: int
    manifest: dict[str, Any]
    """What a checkpoint of this stage depends on; another manifest is refused on resume."""
    params: PyTree | None = None
    """Parameters of the stage before, None for the first."""
    texts: Callable[[], Mapping[str, Sequence[str]]] = dict
    """Gives the columns of the item table as text, one value a catalogue row."""
    shared: Path | None = None
    """A folder for what runs beside each other make once, where there is one."""


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Teaches a generator the next item of each history, and keeps the parameters that rank best
    on validation."""

    objective: Any
    """For example jaxrec.objectives.NextToken()."""
    feed: Any = UserCentric()
    """How histories become batches: UserCentric(...), TargetCentric(...), or Instructions(...) for
    language models."""
    optimizer: Any = AdamW()
    """What turns gradients into updates."""
    fit: FitOptions = FitOptions()
    """Steps, validation, early stopping, checkpoints."""
    start: Any = None
    """Where the parameters of the first stage come from: None draws them, Pretrained(...) reads
    them. Later stages go on from the stage before."""
    validation_cases: int = 2000
    """Validation cases ranked each time, drawn with the recipe's seed; 0 takes all."""

    @property
    def selected_on(self) -> str:
        """What chose the checkpoint, for the protocol."""
        return f"validation {self.fit.monitor}" if self.fit.validate_every else "the last step"

    def loss(self, generator: Any, space: TokenSpace) -> LossFunction:
        """The objective on a generator's logits, as a training step takes it.

        A mixture of experts adds its balance loss and reports its load.
        """
        told = generator.forward_with_statistics if is_mixture(generator) else None

        def loss(params: PyTree, tables: Tables, batch: Events | TextBatch, key: jax.Array) -> Any:
            mixtures: list[Any] = []

            def apply(params: PyTree, tables: Tables, batch: Any, key: jax.Array | None) -> Any:
                if told is None:
                    return generator.forward(params, tables, batch, space, key=key)
                logits, statistics = told(params, tables, batch, space, key=key)
                mixtures.append(statistics)
                return logits

            total, weight, metrics = self.objective(apply, params, tables, batch, key)
            for each in mixtures:
                total, metrics = _balanced(total, weight, metrics, each)
            return total, weight, metrics

        return loss

    def flops(self, generator: Any, space: TokenSpace) -> float:
        """FLOPs of a step by formula, forward and backward, padding included; of the widest batch
        where the feed has several widths."""
        rows, length = self.feed.batch_shape
        network = generator.flops(space, rows, length)
        if not is_retriever(generator):
            return network
        return network + self.objective.flops(rows * length, space.sizes[0], generator.width)

    def run(self, context: StageContext) -> FitResult:
        """Trains, or resumes, and returns the best parameters."""
        generator, space = context.generator, context.space

        def init(key: jax.Array) -> PyTree:
            return generator.init(key, space)

        def start(key: jax.Array, shardings: PyTree) -> PyTree:
            if context.params is None:
                return self.start(generator, space, key, shardings)
            return jax.device_put(context.params, shardings)

        told = {}
        if getattr(self.feed, "reads_items", False):
            told["items"] = ItemTexts(context.texts(), space.levels)
        batches = self.feed(
            context.histories,
            context.split,
            seed=context.seed,
            host=jax.process_index(),
            hosts=jax.process_count(),
            **told,
        )
        return fit(
            self.loss(generator, space),
            init,
            generator.axes(space),
            batches,
            context.tables,
            optimizer=self.optimizer,
            options=self.fit,
            mesh=context.mesh,
            folder=context.folder,
            seed=context.seed,
            validate=RankingValidation(context, self.validation_cases),
            writers=context.writers,
            manifest=context.manifest,
            rebalance=rebalance_of(generator),
            start=None if context.params is None and self.start is None else start,
        )


def is_mixture(generator: Any) -> bool:
    """Whether a generator has experts that must be kept in balance."""
    return getattr(generator, "mixture", None) is not None


def rebalance_of(generator: Any) -> Rebalance | None:
    """What moves the biases of a mixture that is kept in balance without a loss."""
    balanced = is_mixture(generator) and generator.mixture.balance == "bias"
    return generator.rebalance if balanced else None


def _balanced(
    total: jax.Array, weight: jax.Array, metrics: dict[str, Any], statistics: Any
) -> tuple[jax.Array, dict[str, Any]]:
    """A loss with that of its mixtures, which counts once a target, and what they report."""
    load, extra = statistics.load, statistics.loss.sum()
    uneven = jnp.mean(jnp.max(load, axis=-1) / jnp.maximum(jnp.mean(load, axis=-1), 1e-9))
    told = {
        "loss_balance": (jax.lax.stop_gradient(extra) * weight, weight),
        "experts_uneven": (uneven * weight, weight),
        "experts_dropped": (statistics.dropped.sum().astype(jnp.float32), weight),
        LOAD: load,
    }
    return total + extra * weight, {**metrics, **told}


@dataclasses.dataclass(frozen=True, eq=False)
class RankingValidation:
    """Validation by what the recipe is judged by: real decoding, ranked against the target."""

    context: StageContext
    cases: int

    def __call__(self, params: PyTree, step: int) -> dict[str, float]:
        """Recall, NDCG and MRR of the validation cases, seen items masked."""
        context = self.context
        positions = self.positions()
        answers = context.ranker(
            params,
            context.tables,
            context.catalogue,
            ranked_batches(
                context.histories,
                positions,
                history=context.history,
                rows=context.rows,
                mask_seen=True,
            ),
            cases=len(positions),
            describe=f"validation at step {step}",
        )
        targets = np.asarray(context.histories.item)[positions]
        # A list of k items says nothing about what lies beyond k.
        cutoffs = tuple(cutoff for cutoff in CUTOFFS if cutoff <= context.ranker.decoding.k)
        return rank_metrics(ranks_in_lists(answers.items, answers.valid, targets), cutoffs)

    def positions(self) -> np.ndarray:
        """Flat positions of the validation targets that are ranked, the same every time."""
        positions = np.asarray(self.context.split.validation)
        if not self.cases or self.cases >= len(positions):
            return positions
        draw = np.random.default_rng(self.context.seed).permutation(len(positions))[: self.cases]
        return positions[np.sort(draw)]


def ranked_batches(
    histories: Histories, positions: np.ndarray, *, history: int, rows: int, mask_seen: bool
) -> Iterator[tuple[Events, np.ndarray, np.ndarray]]:
    """Batches for a `Ranker`: the newest events of each history, and the items it must not get.

    The whole history is masked, also what lies beyond the history cap. Short histories come in
    narrow batches, so that little time goes into padding; two widths, because each is a program of
    its own to compile.

    Args:
        histories: the log.
        positions: int64[c], flat position of each case's target.
        history: events of a history that are read, the newest ones.
        rows: histories a batch.
        mask_seen: whether items of the history may not be answered.

    Yields:
        (events, denied, index) as `Ranker` takes them.
    """
    users = histories.user_of(np.asarray(positions, np.int64))
    longest = int((positions - histories.offsets[users]).max(initial=0))
    # The same width with and without masking, so that both run the same program.
    width = denied_width(longest)
    for cases in case_batches(
        histories, positions, length=history, rows=rows, buckets=(max(1, history // 4),)
    ):
        denied = []
        if mask_seen:
            denied = [
                seen_before(histories, int(positions[case])) for case in cases.case[cases.live]
            ]
        yield cases.events, pad_denied(denied, rows, width), cases.case


def seen_before(histories: Histories, position: int) -> np.ndarray:
    """Distinct items of a user's events before a flat position."""
    user = int(histories.user_of(np.asarray([position], np.int64))[0])
    return np.unique(np.asarray(histories.item[int(histories.offsets[user]) : position]))
