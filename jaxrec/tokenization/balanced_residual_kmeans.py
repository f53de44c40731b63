"""Residual k-means with levels whose codes have equally many items (METHODS T5).

    r_1 = x - offset;  c_l = argmin_k |r_l - e^l_k|^2 + price^l_k;  r_{l+1} = r_l - e^l_{c_l}

The tokenizer of OneRec (arXiv:2502.18965) and MiniOneRec (arXiv:2510.24431), which balance every
level; OneSearch (arXiv:2509.03236) balances the last one alone, because balance at the others
parts items that belong together. The prices make codes of new vectors agree with those of the
fitted: the even assignment of least error is a power diagram (`balanced_kmeans.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxrec.tokenization.balanced_kmeans import Method, balanced_kmeans, nearest_priced
from jaxrec.tokenization.blocks import block_rows, map_rows
from jaxrec.tokenization.kmeans import fit_kmeans
from jaxrec.tokenization.quantizer import Aux, check_vectors, check_weights
from jaxrec.tokenization.residual_kmeans import FitTrace, ResidualKMeans, ResidualState


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class BalanceTrace:
    """How evenly the levels came out: numbers of fitted rows of positive weight."""

    fewest: Int32[Array, " l"]
    """Rows of the code that has fewest."""
    most: Int32[Array, " l"]
    off: Int32[Array, " l"]
    """Rows whose code is not that of the balanced assignment: equal rows have equal codes, also
    where an even assignment would part them, and fp32 decides between nearly equal distances."""


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class BalancedState:
    """A fitted residual quantizer with prices."""

    plain: ResidualState
    prices: tuple[Float[Array, " _"], ...]
    """What each code adds to squared distances, one array a level; 0 where it is not balanced."""
    balance: BalanceTrace | None = None
    """Absent in a state read from disk."""


@dataclasses.dataclass(frozen=True)
class BalancedResidualKMeans:
    """Residual k-means; on balanced levels every code has the same number of fitted items, or one
    more.

    Codes of new vectors follow the same prices, so they are as even as the new vectors are like
    the fitted ones. Equal vectors always share a code: a catalogue of many duplicates cannot be
    even, and `report` says how far it is from it.

    Published settings, METHODS T5: OneRec 3 levels of 8192 by the greedy method; MiniOneRec 3
    levels of 256, exact; OneSearch `balanced_levels=(2,)`.

    Raises:
        ValueError: a number out of range; in the methods, bad vectors, codes or weights.
    """

    levels: int = 3
    """Codebooks."""
    codes: int | tuple[int, ...] = 256
    """Codes of every level, or of each."""
    balanced_levels: Literal["all"] | tuple[int, ...] = "all"
    """Levels to balance, counted from 0."""
    method: Method = "exact"
    """How centroids are learnt, see `balanced_kmeans`; the codes are even with either."""
    iterations: int = 50
    """Updates of a level, at most."""
    normalise_residuals: bool = False
    """Scale residuals to unit length before each level, see `ResidualKMeans`."""
    tolerance: float = 1e-4
    """A level is done when an update changes its error by less than this fraction."""

    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        last = self.unbalanced.levels - 1
        if self.method not in get_args(Method):
            raise ValueError(f"method must be {' or '.join(get_args(Method))}, got {self.method}.")
        chosen = self.balanced_levels
        if chosen != "all" and not (chosen and set(chosen) <= set(range(self.levels))):
            raise ValueError(
                f'balanced_levels must be "all" or some of the levels 0 to {last}, got {chosen!r}; '
                "ResidualKMeans balances none."
            )

    @property
    def unbalanced(self) -> ResidualKMeans:
        """The quantizer without prices: it decodes the same codes, from `state.plain`."""
        return ResidualKMeans(
            levels=self.levels,
            codes=self.codes,
            iterations=self.iterations,
            normalise_residuals=self.normalise_residuals,
            tolerance=self.tolerance,
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing beside weights."""
        return ()

    def fit(self, key: PRNGKeyArray, vectors: Any, aux: Aux | None = None) -> BalancedState:
        """Fits the levels one after the other.

        Args:
            key: of the starts.
            vectors: Float[n, d], numpy or jax; rows may be sharded over a mesh. The distances of
                all rows to the codes of a level pass through the memory of the host.
            aux: nothing, or {"weights": Float[n]}. Weights count for centroids; for the sizes of
                codes every row of positive weight is one.
        """
        points = check_vectors(vectors)
        weights = check_weights(aux, points.shape[0])
        offset, residuals = _centre(points, weights)
        levels = []
        for level, size in enumerate(self.unbalanced.asked_sizes):
            scale = jnp.float32(1)
            if self.normalise_residuals:
                residuals, scale = _rescale(residuals, weights)
            found = self._fit_level(jax.random.fold_in(key, level), residuals, weights, level, size)
            residuals, after = _subtract(residuals, weights, found.codebook, found.codes)
            levels.append(found._replace(scale=scale, after=after))
        stacked = {
            name: jnp.stack([getattr(level, name) for level in levels])
            for name in _Level._fields
            if name not in ("codebook", "prices", "codes")
        }
        balance = BalanceTrace(**{name: stacked.pop(name) for name in ("fewest", "most", "off")})
        codebooks = tuple(level.codebook for level in levels)
        scales, weight = stacked.pop("scale"), jnp.sum(weights)
        plain = ResidualState(offset, codebooks, scales, FitTrace(**stacked, weight=weight))
        return BalancedState(plain, tuple(level.prices for level in levels), balance)

    def _fit_level(
        self, key: PRNGKeyArray, residuals: Array, weights: Array, level: int, size: int
    ) -> _Level:
        """Fits one level; scale and error after it are filled in by the caller."""
        settings: dict[str, Any] = {
            "weights": weights,
            "iterations": self.iterations,
            "tolerance": self.tolerance,
        }
        if self.balanced_levels == "all" or level in self.balanced_levels:
            fit = balanced_kmeans(key, residuals, size, method=self.method, **settings)
            prices = fit.prices
        else:
            fit = fit_kmeans(key, residuals, size, **settings)
            prices = jnp.zeros(fit.centroids.shape[0], jnp.float32)
        block = block_rows(fit.centroids.shape[0])
        codes = _assign(residuals, fit.centroids, prices, block=block)
        live = weights > 0
        counts = jax.ops.segment_sum(live.astype(jnp.int32), codes, len(prices))
        return _Level(
            codebook=fit.centroids,
            prices=prices,
            codes=codes,
            scale=jnp.float32(1),
            before=_energy(residuals, weights),
            after=fit.inertia,
            iterations=fit.iterations,
            unused=jnp.sum(counts == 0, dtype=jnp.int32),
            fewest=jnp.min(counts),
            most=jnp.max(counts),
            off=jnp.sum((codes != fit.codes) & live, dtype=jnp.int32),
        )

    def encode(self, state: BalancedState, vectors: Any) -> Int32[Array, "n l"]:
        """Codes of vectors, Int32[n, l]: those of least squared distance plus price, the lowest
        among equals.

        Args:
            vectors: Float[m, d], fitted or new.
        """
        plain = state.plain
        return _encode(
            plain.offset,
            plain.codebooks,
            state.prices,
            check_vectors(vectors, width=plain.offset.shape[0]),
            normalise=self.normalise_residuals,
            block=block_rows(max(self.sizes(state))),
        )

    def decode(self, state: BalancedState, codes: Any) -> Float[Array, "n d"]:
        """Offset plus the codewords of the given levels, Float[n, d].

        Args:
            codes: Int[n, m], the first m levels.
        """
        return self.unbalanced.decode(state.plain, codes)

    def sizes(self, state: BalancedState) -> tuple[int, ...]:
        """Codes of each level as fitted."""
        return self.unbalanced.sizes(state.plain)

    def report(self, state: BalancedState) -> dict[str, Any]:
        """Plain numbers about the fit; errors are per vector and per dimension."""
        every = self.balanced_levels == "all"
        content = {
            **self.unbalanced.report(state.plain),
            "quantizer": type(self).__name__,
            "balanced_levels": list(range(self.levels) if every else self.balanced_levels),
            "method": self.method,
        }
        if state.balance is not None:
            content["fit_fewest_rows"] = [int(each) for each in state.balance.fewest]
            content["fit_most_rows"] = [int(each) for each in state.balance.most]
            content["fit_rows_off_balance"] = [int(each) for each in state.balance.off]
        return content

    def to_arrays(self, state: BalancedState) -> dict[str, np.ndarray]:
        """Those of `ResidualKMeans`, and `prices_0`, ..."""
        arrays = self.unbalanced.to_arrays(state.plain)
        for level, prices in enumerate(state.prices):
            arrays[f"prices_{level}"] = np.asarray(prices)
        return arrays

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> BalancedState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing.
        """
        plain = self.unbalanced.from_arrays(arrays)
        names = [f"prices_{level}" for level in range(self.levels)]
        if absent := [name for name in names if name not in arrays]:
            raise ValueError(
                f"the saved quantizer lacks {', '.join(absent)}; it has "
                f"{', '.join(sorted(arrays))}: it is not a BalancedResidualKMeans."
            )
        return BalancedState(plain, tuple(jnp.asarray(arrays[name], jnp.float32) for name in names))


class _Level(NamedTuple):
    """What the fit of a level found."""

    codebook: Array
    prices: Array
    codes: Array
    """As `encode` gives them: the next level sees what it will see."""
    scale: Array
    before: Array
    after: Array
    iterations: Array
    unused: Array
    fewest: Array
    most: Array
    off: Array


@jax.jit
def _centre(points: Array, weights: Array) -> tuple[Array, Array]:
    offset = jnp.sum(points * weights[:, None], 0) / jnp.sum(weights)
    return offset, points - offset


@jax.jit
def _rescale(residuals: Array, weights: Array) -> tuple[Array, Array]:
    """Residuals of unit length, and their mean length before."""
    scale = jnp.sum(jnp.linalg.norm(residuals, axis=-1) * weights) / jnp.sum(weights)
    return _unit(residuals), scale


@jax.jit
def _energy(residuals: Array, weights: Array) -> Array:
    return jnp.sum(weights * jnp.sum(residuals**2, -1))


@jax.jit
def _subtract(
    residuals: Array, weights: Array, codebook: Array, codes: Array
) -> tuple[Array, Array]:
    """What the codes leave over, and its sum of squares."""
    residuals = residuals - codebook[codes]
    return residuals, _energy(residuals, weights)


@partial(jax.jit, static_argnames=("block",))
def _assign(residuals: Array, codebook: Array, prices: Array, *, block: int) -> Array:
    return map_rows(lambda rows: nearest_priced(rows, codebook, prices), residuals, block)


@partial(jax.jit, static_argnames=("normalise", "block"))
def _encode(
    offset: Array,
    codebooks: tuple[Array, ...],
    prices: tuple[Array, ...],
    points: Array,
    *,
    normalise: bool,
    block: int,
) -> Array:
    def encode_block(rows: Array) -> Array:
        residuals, codes = rows - offset, []
        for codebook, extra in zip(codebooks, prices):
            residuals = _unit(residuals) if normalise else residuals
            codes.append(nearest_priced(residuals, codebook, extra))
            residuals = residuals - codebook[codes[-1]]
        return jnp.stack(codes, -1)

    return map_rows(encode_block, points, block)


def _unit(vectors: Array) -> Array:
    # A residual of zeros has no direction and stays.
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
