"""Late fusion: a quantizer for every block of the vector, their codes side by side.

    x = (x_1, ..., x_m);   codes(x) = codes_1(x_1), ..., codes_m(x_m)

METHODS R7 and T25. A block is what one modality, or one encoder, says about an item; the report of
`Fused` names its columns. MQL4GRec has an RQ-VAE of its own for text and for images; EAGER, GenSAR
and EAGER-LLM have codes of content beside codes of behaviour. Levels have codes of their own in a
token space, so no code is shared between modalities.

Unlike `ProductKMeans` the blocks may be of any widths, and have any quantizers and depths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.quantizer import Aux, check_codes, check_vectors, check_weights
from jaxrec.tokenization.rows import weighted_moments
from jaxrec.types import PyTree

Order = Literal["by_modality", "interleaved"]


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class SeparateState:
    """The fitted quantizers."""

    mean: Float[Array, " d"]
    """Of the fitted vectors: stands for a block whose codes are not given."""
    parts: tuple[PyTree, ...]
    """The state of each quantizer."""


@dataclasses.dataclass(frozen=True)
class Separate:
    """Cuts vectors into blocks of columns and gives each block to a quantizer of its own.

    Every quantizer is fitted with the same key, on its own block alone: its codes are those it
    would have by itself, whatever stands beside it.

    Vectors come from `Fused(...)`, whose `steps` work on each part. The steps of `ItemVectors` see
    the fused vector: leave out those that mix columns (`PCA`, `Whiten`), and `L2`, the default.

    An item that lacks a modality has a block like any other by the time it comes here, the mean or
    zeros as `Fused.missing` says: it takes part in the fit, and has the codes nearest to it. Many
    of them make a code of their own, which then says "unknown".

    Raises:
        ValueError: no part, as many widths as parts missing, a width that is not positive, or an
            unknown order; in the methods, vectors of another width than the blocks together, and
            what the parts raise.
    """

    parts: tuple[Any, ...]
    """Quantizers, one a block: ResidualKMeans(), RqVae(), ..."""
    widths: tuple[int, ...]
    """Columns of each block, from the left."""
    order: Order = "by_modality"
    """Of the codes. `by_modality`: all of the first block, then all of the second (EAGER-LLM).
    `interleaved`: the first code of every block, then the second of every block that has one."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.widths):
            raise ValueError(
                "Separate needs at least one quantizer in parts and a width for each, got "
                f"{len(self.parts)} parts and {len(self.widths)} widths."
            )
        if min(self.widths) < 1:
            raise ValueError(f"Separate needs blocks of at least one column, got {self.widths}.")
        if self.order not in get_args(Order):
            raise ValueError(
                f"Separate.order must be one of {get_args(Order)}, got {self.order!r}."
            )

    @property
    def asked_sizes(self) -> tuple[int, ...]:
        """Codes of each level as configured; AttributeError where a part does not know its own
        before it is fitted."""
        return self._in_order([part.asked_sizes for part in self.parts])

    @property
    def reads(self) -> tuple[str, ...]:
        """What any of the parts reads."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.reads))

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> SeparateState:
        """Fits the quantizers one after the other.

        Args:
            key: of each fit.
            vectors: Float[n, sum of widths], numpy or jax; rows may be sharded over a mesh.
            aux: nothing, or weights Float[n] and what the parts read; each gets what it reads.
        """
        points = self._check_width(check_vectors(vectors))
        mean, _ = weighted_moments(points, check_weights(aux, len(points), also=self.reads))
        states = []
        for part, block in zip(self.parts, cut_columns(points, self.widths)):
            own = {
                name: (aux or {})[name] for name in ("weights", *part.reads) if name in (aux or {})
            }
            states.append(part.fit(key, block, own or None))
        return SeparateState(mean, tuple(states))

    def encode(self, state: SeparateState, vectors: Any) -> Int32[Array, "n l"]:
        """Codes of vectors in `order`, Int32[n, l].

        Args:
            vectors: Float[n, sum of widths], fitted or new.
        """
        points = self._check_width(check_vectors(vectors))
        blocks = cut_columns(points, self.widths)
        codes = [
            part.encode(own, block) for part, own, block in zip(self.parts, state.parts, blocks)
        ]
        found = [jnp.asarray(codes[part])[:, level] for part, level in self._places(state)]
        return jnp.stack(found, -1)

    def decode(self, state: SeparateState, codes: Any) -> Float[Array, "n d"]:
        """What each quantizer makes of its own codes, side by side, Float[n, sum of widths].

        Args:
            codes: Int[n, m], the first m codes in `order`; a block that has none of them is taken
                at its mean.
        """
        known = check_codes(codes, self.sizes(state))
        owners = np.array([part for part, _ in self._places(state)[: known.shape[1]]])
        blocks = []
        for number, mean in enumerate(cut_columns(state.mean[None], self.widths)):
            own = np.flatnonzero(owners == number)
            blocks.append(
                self.parts[number].decode(state.parts[number], known[:, own])
                if len(own)
                else jnp.broadcast_to(mean, (len(known), mean.shape[1]))
            )
        return jnp.concatenate(blocks, -1)

    def sizes(self, state: SeparateState) -> tuple[int, ...]:
        """Codes of each level as fitted, in `order`."""
        return self._in_order(self._own_sizes(state))

    def report(self, state: SeparateState) -> dict[str, Any]:
        """Plain numbers about the fits: of each block its `columns`, the `places` of its codes in
        the ID, and its quantizer's own report."""
        places, column, blocks = self._places(state), 0, []
        for number, (part, own, width) in enumerate(zip(self.parts, state.parts, self.widths)):
            blocks.append(
                {
                    "columns": [column, column + width],
                    "places": [at for at, (owner, _) in enumerate(places) if owner == number],
                    **part.report(own),
                }
            )
            column += width
        return {
            "quantizer": type(self).__name__,
            "levels": len(places),
            "codes": list(self.sizes(state)),
            "order": self.order,
            "blocks": blocks,
        }

    def to_arrays(self, state: SeparateState) -> dict[str, np.ndarray]:
        """`mean`; `widths` and `owners`, the part of each code, so that another cut or order is
        another token space; and the arrays of each part as `part_0/NAME`, `part_1/NAME`, ..."""
        arrays = {
            "mean": np.asarray(state.mean),
            "widths": np.array(self.widths, np.int32),
            "owners": np.array([part for part, _ in self._places(state)], np.int32),
        }
        for number, (part, own) in enumerate(zip(self.parts, state.parts)):
            for name, array in part.to_arrays(own).items():
                arrays[f"part_{number}/{name}"] = array
        return arrays

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> SeparateState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: another number of parts, other widths, another order, or what the parts
                raise.
        """
        expected = ["mean", "owners", *(f"part_{n}" for n in range(len(self.parts))), "widths"]
        found = sorted({name.partition("/")[0] for name in arrays})
        if found != sorted(expected):
            raise ValueError(
                f"the saved quantizer has {', '.join(found)}; a Separate of {len(self.parts)} "
                f"parts has {', '.join(expected)}."
            )
        states = []
        for number, part in enumerate(self.parts):
            prefix = f"part_{number}/"
            own = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
            states.append(part.from_arrays(own))
        state = SeparateState(jnp.asarray(arrays["mean"], jnp.float32), tuple(states))
        for name, own in self.to_arrays(state).items():
            if name in ("widths", "owners") and not np.array_equal(own, arrays[name]):
                raise ValueError(
                    f"the saved quantizer has {name} {np.asarray(arrays[name]).tolist()}, and this "
                    f"Separate {own.tolist()}; give the widths and the order it was fitted with."
                )
        return state

    def _own_sizes(self, state: SeparateState) -> list[tuple[int, ...]]:
        return [part.sizes(own) for part, own in zip(self.parts, state.parts)]

    def _places(self, state: SeparateState) -> tuple[tuple[int, int], ...]:
        return code_places([len(sizes) for sizes in self._own_sizes(state)], self.order)

    def _in_order(self, sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        places = code_places([len(each) for each in sizes], self.order)
        return tuple(sizes[part][level] for part, level in places)

    def _check_width(self, points: Array) -> Array:
        if points.shape[1] != sum(self.widths):
            raise ValueError(
                f"vectors of width {points.shape[1]} cannot be cut into blocks of {self.widths} "
                f"columns, {sum(self.widths)} together; give the widths of the modalities, which "
                "the report of Fused names (blocks, columns)."
            )
        return points


def code_places(depths: Sequence[int], order: str) -> tuple[tuple[int, int], ...]:
    """Whose code stands where in an ID: (part, level of that part) for each place.

    Args:
        depths: levels of each part.
        order: `by_modality` or `interleaved`.

    >>> code_places((2, 1), "by_modality"), code_places((2, 1), "interleaved")
    (((0, 0), (0, 1), (1, 0)), ((0, 0), (1, 0), (0, 1)))
    """
    places = [(part, level) for part, depth in enumerate(depths) for level in range(depth)]
    if order == "interleaved":
        places.sort(key=lambda place: place[1])
    return tuple(places)


def cut_columns(
    points: Float[Array, "n d"], widths: Sequence[int]
) -> Iterator[Float[Array, "n w"]]:
    """Blocks of so many columns each, from the left; one at a time is in memory."""
    start = 0
    for width in widths:
        yield points[:, start : start + width]
        start += width
