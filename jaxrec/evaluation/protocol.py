"""What a number was measured under. A metric without these lines says nothing (METHODS E3)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

LEVELS = ("item", "sid")
"""What is compared with the target: the item, or its semantic codes alone (which is easier)."""

PARTS = ("test", "validation")
"""Which held-out part the cases come from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Every choice that moves a ranking metric, and the size of the data it was measured on.

    `level` and `seen_masked` are those of the headline; rows that differ carry their own.

    Raises:
        ValueError: a value outside what the field allows.
    """

    dataset: str
    num_users: int
    num_items: int
    num_events: int
    num_cases: int
    """Targets that were ranked."""
    min_user: int = 0
    """k-core filter: users with fewer events were dropped, repeatedly; 0 keeps all."""
    min_item: int = 0
    """Likewise for items."""
    split: str = "leave-one-out"
    part: str = "test"
    tie_policy: str = "file"
    """Order of events of one user at one time: "file", "item" or "shuffle:SEED"."""
    candidates: str = "full"
    """"full" ranks the whole catalogue; "sampled:N" ranks the target among N other items."""
    seen_masked: bool = True
    """Whether items of the user's history are no candidates."""
    history_cap: int | None = None
    """Most recent events that the generator reads; None reads all."""
    decoder: str = "exact scoring"
    """How lists are written: "exact scoring", "beam search", ..."""
    beam_width: int | None = None
    """None where the decoder has no beam."""
    level: str = "item"
    fit_on: str = "training events"
    """What parameters and counts were estimated from."""
    selected_on: str = "validation"
    """What chose the checkpoint, for example "validation ndcg@10"."""
    seed: int = 0
    surrogate: str | None = None
    """What stands in for a part of the method that cannot be had; None: nothing does."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_events", "num_cases"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a count, got {getattr(self, name)}.")
        _one_of("level", self.level, LEVELS)
        _one_of("part", self.part, PARTS)
        if not re.fullmatch(r"full|sampled:[1-9][0-9]*", self.candidates):
            raise ValueError(
                f"candidates={self.candidates!r}; give 'full' or 'sampled:N' with N items."
            )
        if not re.fullmatch(r"file|item|shuffle:[0-9]+", self.tie_policy):
            raise ValueError(
                f"tie_policy={self.tie_policy!r}; give 'file', 'item' or 'shuffle:SEED'."
            )
        for name in ("history_cap", "beam_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None; got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown, or holds what it may not.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if unknown := set(fields) - known:
            raise ValueError(f"Unknown protocol fields {sorted(unknown)}; known: {sorted(known)}.")
        if missing := needed - set(fields):
            raise ValueError(f"The protocol lacks {sorted(missing)}.")
        return cls(**fields)

    def describe(self) -> tuple[str, ...]:
        """The protocol in plain sentences, for people."""
        return (
            f"Data: {self.dataset}, {self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_events:,} events{self._core()}.",
            f"Split: {self.split}; {self.num_cases:,} {self.part} cases. Events of one user at "
            f"one time are ordered {_TIES[self.tie_policy.split(':')[0]]}"
            f"{self._seed_of('tie_policy')}.",
            self._candidates(),
            f"The generator reads {self._history()} and writes its list by {self.decoder}"
            + (f" of width {self.beam_width}." if self.beam_width else "."),
            "A hit is the item itself."
            if self.level == "item"
            else "A hit is the item's semantic codes; another item with the same codes counts.",
            f"Estimated from {self.fit_on}; checkpoint chosen on {self.selected_on}; "
            f"seed {self.seed}.",
            f"Surrogate: {self.surrogate}."
            if self.surrogate
            else "No part of the method is a surrogate.",
        )

    def _core(self) -> str:
        if not (self.min_user or self.min_item):
            return ", nothing filtered out"
        return f", users with at least {self.min_user} and items with at least {self.min_item}"

    def _candidates(self) -> str:
        kind, _, number = self.candidates.partition(":")
        among = "the whole catalogue" if kind == "full" else f"itself and {number} sampled items"
        seen = "are masked" if self.seen_masked else "stay candidates"
        return f"Each target is ranked among {among}; items of the user's history {seen}."

    def _history(self) -> str:
        return f"the last {self.history_cap} events" if self.history_cap else "the whole history"

    def _seed_of(self, name: str) -> str:
        seed = getattr(self, name).partition(":")[2]
        return f" (seed {seed})" if seed else ""


_TIES = {"file": "as the log lists them", "item": "by item", "shuffle": "at random"}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; choose one of {', '.join(map(repr, allowed))}.")
