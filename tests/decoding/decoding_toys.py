"""A table model with a cache, and slow, obvious references for every decoder.

The model's logits are a hash of (row of the batch, prefix). The hash of the prefix is the cache:
one number per beam, reordered by `parents` and extended by `codes`, so a beam that is reordered
wrongly gets the logits of another prefix. Integer arithmetic is the same in numpy and JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.decoding import Catalogue, StepFunctions, TrieShape, build_catalogue
from jaxrec.decoding.catalogue import Kind
from jaxrec.types import Ranked, TokenSpace

FAR = np.float32(-1e9)


def mix(x, y, xp):
    """A hash of two unsigned 32-bit arrays."""
    x = (x ^ (y + xp.uint32(0x9E3779B9))) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> xp.uint32(16))


def hash_logits(state, width, sharpness, xp):
    """Logits in (-sharpness, sharpness) for each code after the prefixes of `state`."""
    codes = xp.arange(width, dtype=xp.uint32)
    bits = mix(state[..., None], codes * xp.uint32(7919), xp) >> xp.uint32(8)
    unit = bits.astype(xp.float32) * xp.float32(2.0**-24)
    return (unit * 2 - 1) * xp.float32(sharpness)


@dataclasses.dataclass(frozen=True)
class TableModel:
    """Random logits per prefix and per row; `rows` are seeds of the histories."""

    space: TokenSpace
    sharpness: float = 4.0

    def prefill(self, rows) -> dict:
        """The cache of one beam per row."""
        return {"state": jnp.asarray(rows, jnp.uint32)[:, None], "bias": jnp.zeros(len(rows))}

    def functions(self, cache: dict) -> StepFunctions:
        """Binds the model to a batch."""

        def step(cache, codes, parents, level):
            state = jnp.take_along_axis(cache["state"], parents, axis=1)
            extended = mix(state, codes.astype(jnp.uint32) + jnp.uint32(1), jnp)
            state = jnp.where(jnp.asarray(level) > 0, extended, state)
            logits = hash_logits(state, self.space.width, self.sharpness, jnp)
            size = jnp.asarray(self.space.sizes)[level]
            logits = jnp.where(jnp.arange(self.space.width) < size, logits, FAR)
            return logits, {"state": state, "bias": cache["bias"]}

        def extend(cache, codes, parents, items):
            state = jnp.take_along_axis(cache["state"], parents, axis=1)
            state = mix(state, codes.astype(jnp.uint32) + jnp.uint32(1), jnp)
            state = mix(state, items.astype(jnp.uint32) + jnp.uint32(1000), jnp)
            return {"state": state, "bias": cache["bias"]}

        return StepFunctions(cache, step, cache["bias"].shape[0], extend)

    def logits(self, row: int, prefix: tuple[int, ...], written=()) -> np.ndarray:
        """Reference: the logits after one prefix, float64, codes of the level only.

        `written` are (item, codes) of the items before it.
        """
        state = np.array([row], np.uint32)
        for item, codes in written:
            for number in (*(code + 1 for code in codes), item + 1000):
                state = mix(state, np.array([number], np.uint32), np)
        for code in prefix:
            state = mix(state, np.array([code + 1], np.uint32), np)
        logits = hash_logits(state, self.space.width, self.sharpness, np)[0]
        return logits[: self.space.sizes[len(prefix)]].astype(np.float64)


def reference_trie(codes: np.ndarray, live: set[int]) -> dict[tuple[int, ...], set[int]]:
    """Every prefix that has a live item, with the codes that may follow it."""
    trie: dict[tuple[int, ...], set[int]] = {}
    for item in sorted(live):
        path = tuple(int(code) for code in codes[item])
        for depth, code in enumerate(path):
            trie.setdefault(path[:depth], set()).add(code)
    return trie


def reference_step(model, row: int, prefix, trie, mask: str, written=()) -> dict[int, float]:
    """Log-probability of every legal next code of one prefix."""
    logits = model.logits(row, prefix, written)
    legal = sorted(trie.get(prefix, ()))
    pool = logits[legal] if mask == "before_softmax" else logits
    if not legal:
        return {}
    top = pool.max()
    norm = top + np.log(np.exp(pool - top).sum())
    return {code: float(logits[code] - norm) for code in legal}


def reference_scores(model, row: int, codes: np.ndarray, live: set[int], mask: str) -> dict:
    """Exhaustive: the teacher-forced log-probability of every live item."""
    trie, scores = reference_trie(codes, live), {}
    memo: dict = {}
    for item in live:
        path = tuple(int(code) for code in codes[item])
        total = 0.0
        for depth, code in enumerate(path):
            prefix = path[:depth]
            if prefix not in memo:
                memo[prefix] = reference_step(model, row, prefix, trie, mask)
            total += memo[prefix][code]
        scores[item] = total
    return scores


def reference_beam(model, row, codes, live, mask, width, order=None) -> list[tuple[int, float]]:
    """Beam search with Python lists: (item, score), best first, groups expanded in order.

    `width` is one number, or one a level.
    """
    widths = [width] * codes.shape[1] if isinstance(width, int) else width
    trie = reference_trie(codes, live)
    order = np.zeros(len(codes)) if order is None else order
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for width in widths:
        grown = []
        for rank, (score, prefix) in enumerate(beams):
            for code, gain in reference_step(model, row, prefix, trie, mask).items():
                grown.append((-(score + gain), rank, code, (*prefix, code)))
        beams = [(-cost, prefix) for cost, _, _, prefix in sorted(grown)[:width]]
    answer = []
    for score, prefix in beams:
        group = [i for i in live if tuple(int(c) for c in codes[i]) == prefix]
        answer += [(item, score) for item in sorted(group, key=lambda i: (order[i], i))]
    return answer


def check_ranked(ranked: Ranked, row: int, expected: list[tuple[int, float]], k: int) -> None:
    """One row of an answer equals a reference list, whatever the order of near-equal scores."""
    items, scores, valid = (np.asarray(part[row]) for part in dataclasses.astuple(ranked))
    count = min(k, len(expected))
    assert items.shape == (k,)
    np.testing.assert_array_equal(valid, np.arange(k) < count)
    np.testing.assert_array_equal(items[count:], -1)
    np.testing.assert_array_equal(scores[count:], -np.inf)
    got = items[:count].tolist()
    assert len(set(got)) == count, f"repeated items: {got}"
    by_item = dict(expected)
    np.testing.assert_allclose(scores[:count], [s for _, s in expected[:count]], atol=2e-5)
    np.testing.assert_allclose(scores[:count], [by_item[i] for i in got], atol=2e-5)
    assert (np.diff(scores[:count]) <= 0).all()


def ranked_reference(scores: dict[int, float], codes, order=None) -> list[tuple[int, float]]:
    """A score table as the list that an exhaustive decoder returns."""
    order = np.zeros(len(codes)) if order is None else order
    groups: dict = {}
    for item in range(len(codes)):
        groups.setdefault(tuple(codes[item].tolist()), []).append(item)
    first = {path: min(group, key=lambda i: (order[i], i)) for path, group in groups.items()}

    def key(item: int):
        path = tuple(codes[item].tolist())
        return (-scores[item], first[path], order[item], item)

    return [(item, scores[item]) for item in sorted(scores, key=key)]


def random_codes(rng: np.random.Generator, sizes, items: int, shape: str) -> np.ndarray:
    """Codes of a catalogue of a given shape: where the trouble is."""
    if shape == "chain":  # one long shared prefix; only the last level branches
        codes = np.repeat(rng.integers(0, sizes, (1, len(sizes))), items, axis=0)
        codes[:, -1] = rng.integers(0, sizes[-1], items)
    elif shape == "skewed":
        codes = np.minimum(rng.geometric(0.6, (items, len(sizes))) - 1, np.asarray(sizes) - 1)
    elif shape == "full":  # every ID there is, some of them twice
        every = np.array(list(itertools.product(*(range(size) for size in sizes))))
        codes = every[np.resize(rng.permutation(len(every)), min(items, 2 * len(every)))]
    else:
        codes = rng.integers(0, sizes, (items, len(sizes)))
    return codes.astype(np.int64)


def example(seed: int = 0, sizes=(5, 4, 3, 4), items: int = 60, shape: str = "uniform"):
    """A catalogue with collisions, its codes and a model of its space."""
    space = TokenSpace(tuple(sizes))
    codes = random_codes(np.random.default_rng(seed), sizes, items, shape)
    catalogue: Catalogue = build_catalogue(codes, space)
    return catalogue, codes, TableModel(space)


def roomy(codes: np.ndarray, space: TokenSpace, order=None, kind: Kind = "slots") -> Catalogue:
    """A catalogue whose shape depends on the token space and the number of items only, so that
    random ones share a program; every level laid out alike."""
    nodes = [1]
    for size in space.sizes:
        nodes.append(min(len(codes), nodes[-1] * size))
    shape = TrieShape(tuple(nodes), (kind,) * space.levels, space.sizes, len(codes))
    return build_catalogue(codes, space, order, shape=shape)


QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: the tests spend their time compiling, not running."""


@functools.cache
def compiled(decoder, model: TableModel):
    """One program per decoder, model and shapes."""

    def run(cache, catalogue, filters):
        return decoder(model.functions(cache), catalogue, filters)

    return jax.jit(run, compiler_options=QUICK)


def decode(decoder, model: TableModel, rows, catalogue, filters=None) -> Ranked:
    """Runs a decoder on a batch of histories."""
    return compiled(decoder, model)(model.prefill(rows), catalogue, filters)
