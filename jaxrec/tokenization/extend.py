"""Versions of an index: new items get IDs, old ones leave, and nobody else moves.

Codebooks stay as they were fitted, so the token space, and with it every checkpoint, stays valid.
Each version names its parent, the version it was made from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.tokenization.collisions import Taken
from jaxrec.tokenization.leaves import bucket_numbers
from jaxrec.tokenization.quantizer import check_vectors
from jaxrec.tokenization.semantic_ids import SemanticIds

_NAMED = 5


def extend(
    ids: SemanticIds,
    quantizer: Any,
    policy: Any,
    vectors: Any,
    items: Sequence[str] | np.ndarray,
    *,
    order: np.ndarray | None = None,
) -> tuple[SemanticIds, dict[str, Any]]:
    """Semantic IDs for new items, in an index whose old items all keep theirs.

    The quantizer encodes with the codebooks that the artefact holds; the collision policy gives the
    new items IDs that it could have given them beside the old ones: the next digits of their
    buckets (ExtraDigit), free codes only (Reassign, NextNearest, RandomLast), whatever the
    quantizer says (Keep).

    Args:
        ids: the index.
        quantizer: the component that made it, with the settings of then.
        policy: the collision policy that made it.
        vectors: Float[m, d], made as those were that the quantizer was fitted on: the same
            encoder, then the same steps with the states that they learnt then
            (`VectorsResult.states`). Steps fitted on the new items make other vectors.
        items: m new item ids.
        order: the new rows from first served to last; as given by default.

    Returns:
        The new version, new items after the old ones and the old index its parent; and a report,
        JSON-ready: `collisions` (what the policy did), `n_old_ids_shared` (new items whose codes,
        before the policy, an old item has), `final`.

    Raises:
        ValueError: no item, an item that the index has already or that is named twice, another
            quantizer or policy than the index was made with, bad vectors, or no place for a new
            item (the message names the bucket and the cure).
    """
    names = _check_new(ids, items)
    state, sizes = open_quantizer(ids, quantizer)
    points = np.asarray(check_vectors(vectors))
    if len(points) != len(names):
        raise ValueError(f"{len(names)} item ids for {len(points)} vectors; give one each.")
    codes = np.asarray(quantizer.encode(state, points))

    def decode(some: np.ndarray) -> np.ndarray:
        return np.asarray(quantizer.decode(state, some))

    final = policy(
        codes,
        sizes=sizes,
        order=order,
        vectors=points,
        decode=decode,
        taken=Taken(ids.codes, ids.space),
    )
    if final.space != ids.space:
        raise ValueError(
            f"{type(policy).__name__} makes IDs of levels {final.space.sizes}, but the index has "
            f"{ids.space.sizes}; give the collision policy that made the index."
        )
    new = dataclasses.replace(
        ids,
        codes=np.concatenate([ids.codes, final.codes]),
        items=np.concatenate([ids.items, names]),
        parent=ids.assignment_id,
    )
    shared = _has_row(ids.codes[:, : len(sizes)], codes)
    return new, {
        "n_old": ids.num_items,
        "n_new": len(names),
        "n_old_ids_shared": int(shared.sum()),
        "collisions": {"policy": type(policy).__name__, **final.report},
        "final": new.summary(),
        "parent": ids.assignment_id,
    }


def remove(ids: SemanticIds, items: Sequence[str] | np.ndarray) -> SemanticIds:
    """A version without some items, its parent the old one. All others keep their IDs.

    A later `extend` may give the places of removed items to new ones.

    Raises:
        ValueError: no item, an item that the index does not have, or all of them.
    """
    names = np.asarray(items, str)
    if not len(names):
        raise ValueError("there is no item to remove; name at least one.")
    gone = ids.rows_of(names.tolist())
    stays = np.ones(ids.num_items, bool)
    stays[gone] = False
    if not stays.any():
        raise ValueError(f"all {ids.num_items} items would be removed; an index needs one.")
    return dataclasses.replace(
        ids, codes=ids.codes[stays], items=ids.items[stays], parent=ids.assignment_id
    )


def compare_versions(old: SemanticIds, new: SemanticIds) -> dict[str, Any]:
    """What differs between two indexes, JSON-ready.

    Returns:
        `added`, `removed` and `moved` (codes changed): item ids in catalogue order; `n_kept`, items
        with the codes they had; `same_space`, whether one checkpoint serves both; `is_child`,
        whether `new` was made from `old`. Nothing has moved after `extend` and `remove`. In spaces
        of different levels all common items have moved.
    """
    common = np.isin(old.items, new.items)
    names = old.items[common].tolist()
    before, after = old.codes_of(names), new.codes_of(names)
    same_levels = before.shape == after.shape
    moved = (before != after).any(1) if same_levels else np.ones(len(names), bool)
    return {
        "added": new.items[~np.isin(new.items, old.items)].tolist(),
        "removed": old.items[~common].tolist(),
        "moved": old.items[common][moved].tolist(),
        "n_kept": int((~moved).sum()),
        "same_space": old.space_id == new.space_id,
        "is_child": new.parent == old.assignment_id,
    }


def lineage(
    newest: Path | str, others: Iterable[Path | str] = ()
) -> tuple[tuple[str, SemanticIds], ...]:
    """The versions that an index descends from, as far as they are at hand.

    Args:
        newest: folder of an index (`SemanticIds.save`).
        others: folders of further indexes, in any order, ancestors or not.

    Returns:
        Folder and index of each version, from the oldest ancestor at hand to the newest. Where the
        first one has a `parent`, that parent is not at hand.

    Raises:
        ValueError: a folder that holds no index, or a damaged one; an ancestor of another token
            space, which no version has.
    """
    chain = [(str(newest), SemanticIds.load(newest))]
    at_hand = {}
    for folder in others:
        version = SemanticIds.load(folder)
        at_hand.setdefault(version.assignment_id, (str(folder), version))
    while (parent := chain[0][1].parent) in at_hand:
        folder, version = at_hand[parent]
        if version.space_id != chain[0][1].space_id:
            raise ValueError(
                f"{chain[0][0]} names {folder} as its parent, and they are of different token "
                "spaces; a version keeps the space of its parent."
            )
        chain.insert(0, (folder, version))
    return tuple(chain)


def open_quantizer(ids: SemanticIds, quantizer: Any) -> tuple[Any, tuple[int, ...]]:
    """The state of the quantizer that an index holds, and the codes of its levels.

    Raises:
        ValueError: another quantizer than the index was made with.
    """
    given = type(quantizer).__name__
    if given != ids.quantizer:
        raise ValueError(
            f"the index was made by {ids.quantizer}, and {given} was given; its codebooks say "
            "nothing to another quantizer."
        )
    state = quantizer.from_arrays(ids.state)
    sizes = tuple(quantizer.sizes(state))
    if sizes != ids.space.sizes[: ids.semantic_levels]:
        raise ValueError(
            f"{given} has levels of {sizes} codes, and the index has "
            f"{ids.space.sizes[: ids.semantic_levels]}; give the settings it was made with."
        )
    return state, sizes


def _check_new(ids: SemanticIds, items: Sequence[str] | np.ndarray) -> np.ndarray:
    """The ids of new items, str[m]."""
    names = np.asarray(items, str)
    if names.ndim != 1 or not len(names):
        raise ValueError(f"new items must be a list of at least one id, got shape {names.shape}.")
    if known := names[np.isin(names, ids.items)].tolist():
        raise ValueError(
            f"{len(known)} of {len(names)} items are in the index already, among them "
            f"{', '.join(map(repr, known[:_NAMED]))}; leave them out, or `remove` them first."
        )
    distinct, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{int((counts > 1).sum())} new items are named more than once, among them "
            f"{', '.join(map(repr, distinct[counts > 1][:_NAMED].tolist()))}."
        )
    return names


def _has_row(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which of the asked rows are among `rows`, bool[m]."""
    numbers = bucket_numbers(np.concatenate([rows, asked]))
    return np.isin(numbers[len(rows) :], numbers[: len(rows)])
