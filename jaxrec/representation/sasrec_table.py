"""The item table of a trained SASRec, as LETTER and ETEGRec read it (METHODS R4).

LETTER (arXiv:2405.07314) takes 32 dimensions, ETEGRec (arXiv:2409.05546) 256.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.histories import Histories
from jaxrec.data.packing import flat_events, lay_events, pack_prefix, training_windows
from jaxrec.data.splits import Split
from jaxrec.objectives.item_softmax import ItemSoftmax
from jaxrec.representation.descent import descend, stretches
from jaxrec.representation.encoder import (
    Encoding,
    TrainingSequences,
    check_events,
    encode_behaviour,
    keep_known,
)
from jaxrec.representation.text import Table
from jaxrec.training.optimizers import AdamW, Optimizer
from jaxrec.types import Events, PyTree, Tables, TokenSpace


class PackedRows(NamedTuple):
    """All that is trained on, on the device."""

    events: Events
    """Every training history, packed into rows as long as the network reads."""
    tables: Tables
    """Item numbers."""


def pack_sequences(sequences: TrainingSequences, items: int, length: int) -> PackedRows:
    """Packs all histories into rows of `length` events; longer ones are cut.

    Every event is a target of exactly one row. No times: the encoder is not given any.
    """
    users, events = len(sequences.offsets) - 1, len(sequences.item)
    histories = Histories(
        offsets=np.asarray(sequences.offsets, np.int64),
        item=np.asarray(sequences.item, np.int32),
        time=np.zeros(events, np.int64),
        action=np.zeros(events, np.int32),
        users=np.arange(users).astype(str),
        items=np.arange(items).astype(str),
    )
    nothing = np.zeros(0, np.int64)
    everything = Split(histories.offsets[1:], nothing, nothing, "training sequences")
    windows = training_windows(histories, everything, length=length, context=0)
    places = pack_prefix(windows.size, rows=len(windows.size), length=length)
    rows = int(places.row.max()) + 1
    laid = lay_events(flat_events(histories), windows, places, rows=rows, width=length)
    codes = jnp.arange(items, dtype=jnp.int32)[:, None]
    return PackedRows(jax.tree.map(jnp.asarray, laid), Tables(codes))


@dataclasses.dataclass(frozen=True)
class SasRecTable:
    """Trains SASRec on the training sequences, and gives the vectors by which it knows items.

    Items that nobody had in training take no part, and get the constant vector.

    Raises:
        ValueError: a number below 1; in `encode`, no training events, or a loss that is no longer
            finite.
    """

    network: SasRec = SasRec(layers=1, width=64, heads=2, length=50)
    """Its width is that of the vectors, its length that of a row."""
    objective: ItemSoftmax = ItemSoftmax()
    """What it learns by."""
    rows: int = 32
    """Rows of a step, drawn evenly among the packed ones."""
    steps: int = 600
    """Updates."""
    optimizer: Optimizer = AdamW(learning_rate=3e-3)
    """What turns gradients into updates."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = False
    surrogate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.rows, self.steps) < 1:
            raise ValueError(
                f"SasRecTable needs rows and steps >= 1, got {self.rows} and {self.steps}."
            )

    def encode(self, texts: list[str], **given: Any) -> np.ndarray:
        """Vectors of all items, float32[n, width]; arguments as `encode_with_facts`."""
        return self.encode_with_facts(texts, **given).vectors

    def encode_with_facts(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> Encoding:
        """Vectors of all items, which have no behaviour, and the course of the loss."""
        del texts, table
        events, known = keep_known(check_events("SasRecTable", sequences), len(fit_mask))
        data = pack_sequences(events, int(known.sum()), self.network.length)
        start_key, train_key = jax.random.split(jax.random.key(seed))
        space = _space(data.tables)
        params, losses = descend(self, self.network.init(start_key, space), data, train_key)
        vectors = self.network.item_vectors(params, data.tables, space)
        facts = {"fit_loss": stretches(losses), "fit_epochs": self._epochs(data)}
        return encode_behaviour(np.asarray(vectors), known, facts)

    def loss(self, params: PyTree, data: PackedRows, key: PRNGKeyArray) -> Float[Array, ""]:
        """Mean loss of the events of drawn rows."""
        rows_key, loss_key = jax.random.split(key)
        rows = data.events.item.shape[0]
        drawn = jax.random.randint(rows_key, (self.rows,), 0, rows)
        batch = jax.tree.map(lambda array: array[drawn], data.events)
        space = _space(data.tables)

        def apply(params: PyTree, tables: Tables, batch: Events, key: Array | None) -> Any:
            return self.network.forward(params, tables, batch, space, key=key)

        total, weight, _ = self.objective(apply, params, data.tables, batch, loss_key)
        return total / weight

    def _epochs(self, data: PackedRows) -> float:
        return self.steps * self.rows / data.events.item.shape[0]


def _space(tables: Tables) -> TokenSpace:
    """Sparse item ids of as many items as the tables hold."""
    return TokenSpace((tables.codes.shape[0],))
