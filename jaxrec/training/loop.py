"""The training loop: knows a loss function and batches, and no stage.

The order inside the loop is a contract: **eval, save, fetch, step**. A checkpoint therefore holds
everything that was written and decided up to its step, and the position of the batches *before* the
next one is drawn. That order is all that exact resumption rests on; do not change it.

    while True:
        eval    validate when due; note the best; decide whether to stop
        save    state, position of the batches, bookkeeping
        fetch   the next batch
        step    dispatch; metrics are read one call later, so that nothing waits for them
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.checkpoint import Checkpoints
from jaxrec.parallel import replicated, shard_rows
from jaxrec.tracking import MetricWriter, Progress
from jaxrec.training.book import Batches, Book, FitResult, Stopped
from jaxrec.training.interruption import Interruption, Preempted
from jaxrec.training.optimizers import Optimizer
from jaxrec.training.record import TrainingDiverged
from jaxrec.training.state import Init, Start, abstract_state, create_state, state_shardings
from jaxrec.training.step import Follow, LossFunction, Rebalance, StepReport, make_train_step
from jaxrec.types import PyTree

IN_FLIGHT = 4
"""Calls dispatched and not finished, at most: enough to keep a device busy, few enough that a
signal is answered soon and batches do not pile up on the device."""


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How long to train, and how often to look, save and log. All in steps.

    Raises:
        ValueError: a number out of its range, or an interval that several steps per call overrun.
    """

    steps: int = 1000
    """Steps in all; the schedule of the learning rate ends here."""
    validate_every: int = 200
    """Steps between validations; the last step is always validated. 0 never validates."""
    patience: int = 0
    """Stop after so many validations without a new best; 0 never stops early."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step is always saved."""
    log_every: int = 20
    """Steps between training rows."""
    microbatches: int = 1
    """Parts into which a batch is cut on the device; on a CPU, parts that fit the cache are
    faster."""
    steps_per_call: int = 1
    """Steps per dispatch, for models so small that dispatching costs as much as computing."""
    monitor: str = "ndcg@10"
    """The validation number that chooses the best step; a leading '-' prefers small numbers."""
    keep: int = 2
    """Checkpoints kept, the best one apart."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "checkpoint_every", "log_every"):
            every = getattr(self, name)
            off = name == "validate_every" and every == 0
            if not off and (every < 1 or every % max(1, self.steps_per_call)):
                raise ValueError(
                    f"FitOptions.{name} must be a positive multiple of steps_per_call "
                    f"({self.steps_per_call}), got {every}."
                )
        for name in ("steps", "microbatches", "steps_per_call", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"FitOptions.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.patience < 0:
            raise ValueError(
                f"FitOptions.patience counts validations, got {self.patience}; 0 is off."
            )


def fit(
    loss: LossFunction,
    init: Init,
    axes: PyTree,
    batches: Batches,
    tables: PyTree,
    *,
    optimizer: Optimizer,
    options: FitOptions,
    mesh: Mesh,
    folder: Path | str,
    seed: int = 0,
    validate: Callable[[PyTree, int], dict[str, float]] | None = None,
    writers: MetricWriter | Sequence[MetricWriter] = (),
    manifest: dict[str, Any] | None = None,
    start: Start | None = None,
    rebalance: Rebalance | None = None,
    copies: Mapping[str, Follow] | None = None,
    watch: Callable[[dict[str, float]], None] | None = None,
) -> FitResult:
    """Trains, or goes on training what the folder holds.

    The same call is made to start, to resume after any kind of end, and to read the result of a
    finished run, which is returned at once. A resumed run continues bit for bit on the same mesh;
    on another mesh it sees the same batches in the same order and differs by rounding.

    In the folder: `checkpoints/`, `best/` (the best parameters), `metrics.jsonl`, and
    `finished.json` once there is nothing left to do.

    Args:
        loss: sums over a batch, see `LossFunction`.
        init: key -> parameters.
        axes: the parameters' logical axes.
        batches: this host's numpy batches, rows on axis 0.
        tables: what the loss reads about items; replicated.
        optimizer: for example `AdamW()`.
        options: how long and how often.
        mesh: where; a mesh of one device is fine.
        folder: of this run alone.
        seed: of the initial parameters and of everything random in the loss.
        validate: (parameters, step) -> numbers, the monitored one among them. Must not keep the
            parameters: their memory is reused.
        writers: more places for the metric rows.
        manifest: JSON-able; what makes this run this run (hashes of its inputs, its recipe). A
            checkpoint with another manifest is refused.
        start: gives the parameters of a new run instead of `init`; see `Start`.
        rebalance: moves parameters after each update, without gradient; see `Rebalance`.
        copies: copies of the parameters that the state keeps, and the loss reads; see `Follow`.
        watch: is shown every training row, and may raise to end what cannot come to anything.

    Raises:
        RunMismatch: the folder holds a run with other settings.
        CheckpointError: its newest checkpoint is damaged or of another model.
        TrainingDiverged: loss or gradient stopped being finite; the last good checkpoint stays.
        Preempted: SIGTERM or SIGINT; everything is saved. A SystemExit with code 0.
        ValueError: `validate` does not return the monitored number, or the batches end.
    """
    transformation = optimizer.build(options.steps)
    abstract = abstract_state(init, transformation, axes, mesh, copies or ())
    validate = validate if options.validate_every else None
    agreed = _agreement(manifest, batches, optimizer, options, seed, validate is not None, copies)
    with (
        jax.set_mesh(mesh),
        Checkpoints(Path(folder) / "checkpoints", options.keep) as checkpoints,
        Checkpoints(Path(folder) / "best", None) as best,
    ):
        many = (writers,) if isinstance(writers, MetricWriter) else tuple(writers)
        book = Book(Path(folder), abstract, agreed, checkpoints, best, many)
        if done := book.finished():
            return done
        step = make_train_step(
            loss,
            transformation,
            mesh=mesh,
            shardings=state_shardings(abstract),
            microbatches=options.microbatches,
            steps_per_call=options.steps_per_call,
            rebalance=rebalance,
            copies=copies,
        )
        init_key, step_key = jax.random.split(jax.random.key(seed))
        run = _Run(book, batches, optimizer, options, mesh, validate, watch)
        run.state = book.resume(batches) or create_state(
            init, transformation, init_key, abstract, start
        )
        arguments = jax.device_put((tables, step_key), replicated(mesh))
        with Interruption() as interruption:
            stopped = run.until_stopped(step, *arguments, interruption)
        return book.finish(run.state, stopped)


def _agreement(
    manifest: dict[str, Any] | None,
    batches: Batches,
    optimizer: Optimizer,
    options: FitOptions,
    seed: int,
    validates: bool,
    copies: Mapping[str, Follow] | None,
) -> dict[str, Any]:
    # What must be equal for a checkpoint to be continued. How often to save and log, and how a
    # batch is cut up on the device, may change from session to session.
    return {
        "run": manifest or {},
        # Every host has its own position; what they share must agree.
        "data": {key: value for key, value in batches.fingerprint.items() if key != "host"},
        "training": {
            "seed": seed,
            "optimizer": repr(optimizer),
            "steps": options.steps,
            "validate_every": options.validate_every if validates else 0,
            "patience": options.patience,
            "monitor": options.monitor,
            **({"copies": {name: repr(rule) for name, rule in copies.items()}} if copies else {}),
        },
    }


class _Run:
    """One session of training: the loop, and the metrics that are still on the device."""

    def __init__(
        self,
        book: Book,
        batches: Batches,
        optimizer: Optimizer,
        options: FitOptions,
        mesh: Mesh,
        validate: Callable[[PyTree, int], dict[str, float]] | None,
        watch: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.book, self.batches, self.watch = book, batches, watch
        self.options, self.mesh, self._validate = options, mesh, validate
        self.rate = jax.jit(lambda step: optimizer.rate(step, options.steps))
        self.state: Any = None
        self.step = 0
        # (first step of the call, its report, seconds at its end if a row is due there).
        self.pending: list[tuple[int, StepReport, float | None]] = []
        self.measured = (0, 0.0)
        self.shown: dict[str, float] = {}

    def until_stopped(
        self, train_step: Any, tables: PyTree, key: jax.Array, interruption: Interruption
    ) -> Stopped:
        self.step = int(self.state.step)
        self.measured = (self.step, self.book.seconds)
        stream = iter(self.batches)
        with Progress(self.options.steps, "train", unit="step", initial=self.step) as progress:
            while True:
                if interruption.requested(self.step):
                    self._preempt()
                if self._validation_due():
                    self._evaluate()
                stopped = self._reason_to_stop()
                if stopped or self._every(self.options.checkpoint_every):
                    self._save()
                if stopped:
                    return stopped
                batch, count = self._fetch(stream)
                self.state, report = train_step(self.state, tables, batch, key)
                self._note(report, count)
                progress.update(count, **self.shown)

    def _every(self, interval: int) -> bool:
        return self.step > 0 and self.step % interval == 0

    def _validation_due(self) -> bool:
        if self._validate is None or self.book.record.validated >= self.step:
            return False
        return self.step == self.options.steps or self._every(self.options.validate_every)

    def _evaluate(self) -> None:
        assert self._validate is not None
        self._drain()
        began = time.monotonic()
        numbers = {
            name: float(value)
            for name, value in self._validate(self.state.params, self.step).items()
        }
        seconds = time.monotonic() - began
        name = self.options.monitor.removeprefix("-")
        if name not in numbers:
            raise ValueError(
                f"FitOptions.monitor is {self.options.monitor!r}, and the validation returned "
                f"{', '.join(sorted(numbers)) or 'nothing'}; choose one of these."
            )
        row = {f"validation/{key}": value for key, value in numbers.items()}
        self.book.write(self.step, {**row, "seconds_validation": seconds})
        self.shown = {**self.shown, name: numbers[name]}
        # Validation is not training: move the start of the measurement by its length.
        self.measured = (self.measured[0], self.measured[1] + seconds)
        higher = not self.options.monitor.startswith("-")
        if self.book.record.judge(self.step, numbers[name], higher_is_better=higher):
            self.book.save_best(self.step, self.state.params)

    def _reason_to_stop(self) -> Stopped | None:
        if self.step >= self.options.steps:
            return "finished"
        if self.options.patience and self.book.record.bad >= self.options.patience:
            return "early"
        return None

    def _save(self) -> None:
        # Reading all metrics first also proves that no step up to here went wrong.
        self._drain()
        self.book.save(self.step, self.state, self.batches)

    def _preempt(self) -> None:
        self._save()
        self.book.checkpoints.wait()
        if jax.process_index() == 0:
            print(
                f"stopped by a signal: step {self.step} is saved in {self.book.folder}; run the "
                "same command again to go on.",
                file=sys.stderr,
                flush=True,
            )
        raise Preempted(self.step)

    def _fetch(self, stream: Any) -> tuple[PyTree, int]:
        size = self.options.steps_per_call
        # A run that was stopped between two boundaries first goes to the next one.
        count = min(size - self.step % size, self.options.steps - self.step)
        batches = [batch for _, batch in zip(range(count), stream)]
        if len(batches) < count:
            raise ValueError(
                f"the batches ended at step {self.step + len(batches)} of {self.options.steps}; "
                "training needs batches that go round."
            )
        if size == 1:
            return self._place(batches[0], 0), 1
        if len({jax.tree.leaves(batch)[0].shape for batch in batches}) > 1:
            raise ValueError(
                f"the batches come in several widths (a feed with buckets), which one dispatch of "
                f"{size} steps cannot take together. Set fit.steps_per_call=1, or feed.buckets=()."
            )
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
        return self._place(stacked, 1), count

    def _place(self, batch: PyTree, axis: int) -> PyTree:
        # On one device the compiled step takes numpy arrays as they are, at a tenth of the cost.
        return batch if self.mesh.size == 1 else shard_rows(batch, self.mesh, axis)

    def _note(self, report: StepReport, count: int) -> None:
        first, self.step = self.step, self.step + count
        if len(self.pending) >= IN_FLIGHT:
            jax.block_until_ready(self.pending[-IN_FLIGHT][1])
        if any(seconds is not None for _, _, seconds in self.pending):
            # A row was due one call ago; by now the device has other work to do.
            self._drain()
        due = self.book.seconds if self._every(self.options.log_every) else None
        self.pending.append((first, report, due))

    def _drain(self) -> None:
        pending, self.pending = self.pending, []
        reports = jax.device_get([report for _, report, _ in pending])
        for (first, _, seconds), report in zip(pending, reports):
            if not report.finite.all():
                bad = first + 1 + int(np.argmin(report.finite))
                self.book.checkpoints.wait()
                saved = self.book.checkpoints.latest()
                raise TrainingDiverged(bad, self.step, saved, self.book.folder)
            self.book.record.add(report.metrics)
            if seconds is not None:
                self._write_row(first + len(report.finite), seconds)

    def _write_row(self, step: int, seconds: float) -> None:
        weight = self.book.record.window.get("loss", [0.0, 0.0])[1]
        row = self.book.record.close_window(step)
        row["learning_rate"] = float(self.rate(step - 1))
        steps, elapsed = step - self.measured[0], max(seconds - self.measured[1], 1e-9)
        self.measured = (step, seconds)
        times = {"seconds": seconds, "rate": steps / elapsed, "rate_targets": weight / elapsed}
        self.book.write(step, {**row, **times})
        if self.watch is not None:
            self.watch(row)
        self.shown = {**self.shown, **({"loss": row["loss"]} if "loss" in row else {})}
