"""Groups of items that a policy writes for each history (METHODS D16): drawn, or found by beams.

Every rollout is an item of the catalogue. `Sample` draws from the policy, so that means over a
group are means over the policy; `StochasticBeam` draws without replacement, and `Beams` takes the
likeliest: members of their groups differ by construction, and no mean over them is unbiased.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int32

from jaxrec.decoding.beam import beam_search
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.filters import Filters
from jaxrec.decoding.interface import StepFunctions
from jaxrec.decoding.sampling import check_sampling, sample_items, stochastic_beams


class Written(NamedTuple):
    """What a policy wrote for each history."""

    items: Int32[Array, "b g"]
    """-1 where nothing could be written."""
    log_probs: Float[Array, "b g l"] | None
    """Of each code, renormalised over the children that exist, at the temperature of the draw; None
    where the way of writing does not tell."""


@runtime_checkable
class Rollouts(Protocol):
    """A way of writing; a frozen dataclass."""

    @property
    def group(self) -> int:
        """Rollouts a history."""
        ...

    @property
    def temperature(self) -> float:
        """Logits are divided by it, here and wherever what was written is scored."""
        ...

    def __call__(
        self, functions: StepFunctions, catalogue: Catalogue, filters: Filters, key: Array
    ) -> Written:
        """Writes a group for each row of a batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Sample:
    """Independent draws; the same item may come several times.

    Raises:
        ValueError: a number out of range.
    """

    group: int = 16
    """Rollouts a history."""
    temperature: float = 1.0
    """Logits are divided by it."""

    def __post_init__(self) -> None:
        check_sampling(self.group, self.temperature, 0, 1.0)

    def __call__(
        self, functions: StepFunctions, catalogue: Catalogue, filters: Filters, key: Array
    ) -> Written:
        """Draws a group for each row."""
        drawn = sample_items(
            *(functions, catalogue, filters),
            key=key,
            count=self.group,
            temperature=self.temperature,
        )
        return Written(drawn.items, drawn.log_probs)


@dataclasses.dataclass(frozen=True)
class StochasticBeam:
    """Draws without replacement (arXiv:1903.06059), likeliest noise first.

    Raises:
        ValueError: a number out of range.
    """

    group: int = 16
    """Rollouts a history."""
    temperature: float = 1.0
    """Logits are divided by it."""

    def __post_init__(self) -> None:
        check_sampling(self.group, self.temperature, 0, 1.0)

    def __call__(
        self, functions: StepFunctions, catalogue: Catalogue, filters: Filters, key: Array
    ) -> Written:
        """Draws a group for each row."""
        drawn = stochastic_beams(
            *(functions, catalogue, filters),
            key=key,
            count=self.group,
            temperature=self.temperature,
        )
        return Written(drawn.items, drawn.log_probs)


@dataclasses.dataclass(frozen=True)
class Beams:
    """The likeliest items, best first, as in MiniOneRec (arXiv:2510.24431).

    Raises:
        ValueError: a group of none.
    """

    group: int = 16
    """Rollouts a history, and width of the beam."""
    temperature: float = 1.0
    """Of the scores that follow; the order of beams does not depend on it."""

    def __post_init__(self) -> None:
        check_sampling(self.group, self.temperature, 0, 1.0)

    def __call__(
        self, functions: StepFunctions, catalogue: Catalogue, filters: Filters, key: Array
    ) -> Written:
        """Finds a group for each row; there is no chance in it."""
        del key
        found = beam_search(
            *(functions, catalogue, filters),
            width=self.group,
            k=self.group,
            mask="before_softmax",
        )
        return Written(found.items, None)
