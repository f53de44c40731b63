"""The policy of an alignment step: what it writes, and how likely it is to write what is given.

Rollout and loss must speak of one distribution (METHODS D16). `trie` renormalises every code over
the children that exist, which is what rollouts are drawn from; `full` takes the model's own softmax
over the codebook, under which mass lost to codes that lead nowhere counts as unlikely.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.alignment.reward_model import RewardArrays
from jaxrec.alignment.rollouts import Rollouts, Written
from jaxrec.decoding.candidates import item_log_probs_under
from jaxrec.decoding.catalogue import Catalogue
from jaxrec.decoding.filters import Filters
from jaxrec.decoding.interface import Mask, StepFunctions
from jaxrec.training.ranking import bind
from jaxrec.types import Events, PyTree, Tables, TokenSpace

Norm = Literal["trie", "full"]
MASKS: dict[str, Mask] = {"trie": "before_softmax", "full": "after_softmax"}


class Given(NamedTuple):
    """The arrays that an alignment step reads and does not change: arguments, never constants."""

    tables: Tables
    catalogue: Catalogue
    reward: RewardArrays | None = None
    """Numbers of a frozen reward model."""
    reward_tables: Tables | None = None
    """Its item numbers and features."""
    base: PyTree | None = None
    """Parameters that low-rank changes are added to."""


def check_norm(norm: str) -> None:
    """Raises ValueError unless there is such a normalisation."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm!r} is unknown; choose one of {', '.join(get_args(Norm))}.")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A generator as a policy over the items of a catalogue. Hashable: static in `jit`."""

    generator: Any
    space: TokenSpace
    rollouts: Rollouts
    norm: Norm = "trie"
    mask_seen: bool = False
    """Items of the history may not be written."""

    def __post_init__(self) -> None:
        if self.norm == "full" and self._normalised and self.rollouts.temperature != 1:
            raise ValueError(
                f"{type(self.generator).__name__} gives log-probabilities over its whole "
                f"vocabulary, which rollouts.temperature={self.rollouts.temperature} would leave "
                "without a sum of one; use norm='trie', or temperature=1."
            )

    def filters(self, events: Events) -> Filters:
        """What may be written for each history."""
        if not self.mask_seen:
            return Filters()
        return Filters(denied=jnp.where(events.segment > 0, events.item, -1))

    def read(self, params: PyTree, given: Given, events: Events) -> StepFunctions:
        """The generator after it has read each history once; everything below starts from it."""
        functions = bind(self.generator, params, given.tables, events, self.space)
        assert isinstance(functions, StepFunctions), "only a generator writes semantic IDs"
        return functions

    def still(self, functions: StepFunctions, params: PyTree) -> StepFunctions:
        """The same, but no gradient comes of what it writes; the history is not read again."""
        frozen, cache = jax.lax.stop_gradient((params, functions.cache))

        def step(cache: PyTree, codes: Array, parents: Array, level: Any) -> Any:
            return self.generator.step(frozen, cache, codes, parents, level, self.space)

        return StepFunctions(cache, step, functions.batch)

    def write(self, still: StepFunctions, given: Given, events: Events, key: Array) -> Written:
        """A group of items for each history."""
        return self.rollouts(still, given.catalogue, self.filters(events), key)

    def log_probs(
        self,
        functions: StepFunctions,
        given: Given,
        items: Int32[Array, "b m"],
        filters: Filters,
        norms: tuple[Norm, ...] = (),
    ) -> tuple[Float[Array, "b m l"], ...]:
        """Log-probability of every code of items; -inf for what is no item or is filtered.

        Args:
            functions: from `read`.
            given: the catalogue.
            items: rollouts, or what the user did.
            filters: those that the rollouts were written under, or none.
            norms: normalisations, an array each; the policy's own by default.
        """
        return item_log_probs_under(
            *(functions, given.catalogue, items, filters),
            block=max(1, items.shape[1]),
            masks=tuple(self._mask(norm) for norm in norms or (self.norm,)),
            temperature=self.rollouts.temperature,
        )

    def _mask(self, norm: Norm) -> Mask:
        """How illegal codes count; a network of the whole vocabulary has normalised already."""
        return "as_given" if norm == "full" and self._normalised else MASKS[norm]

    @property
    def _normalised(self) -> bool:
        return getattr(self.generator, "normalised", False)
