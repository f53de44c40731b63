"""Answers of an exported run, with jax and numpy alone: this file stands in every export.

    from exported import Exported          # inside the folder, or with it on the path
    run = Exported("FOLDER")
    run([["50", "181", "172"], []], count=5)

It imports nothing of jaxrec. The index (the trie of the items) is an argument of the program:
`run.swap("OTHER")` takes the index of another folder of the same shape between two calls, and
nothing is compiled anew.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

PROGRAM, PARAMETERS, INDEX, MANIFEST = "program.bin", "parameters.npz", "index.npz", "export.json"
ITEMS = "items"
"""Key of the item ids in the index; all other keys are arrays in the order of their names."""


class Exported:
    """A program, its parameters and an index.

    Args:
        folder: what `jaxrec export` wrote.

    Raises:
        ValueError: the folder is no export, or a file of it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.manifest = _manifest(folder)
        if not (folder / PROGRAM).is_file():
            raise ValueError(f"{folder} holds an index and no program; load an export and swap().")
        self._program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        # One compilation a batch size, kept by jit.
        self._call = jax.jit(self._program.call)
        self._parameters, _ = _arrays(folder / PARAMETERS)
        self.swap(folder)

    def swap(self, folder: str | Path) -> None:
        """Answers from the index of another folder from now on.

        Raises:
            ValueError: an index of other semantic IDs, or one that outgrew the program's shapes.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        if manifest["space_id"] != self.manifest["space_id"]:
            raise ValueError(
                f"the index in {folder} is of semantic IDs {manifest['space_id']}, the program of "
                f"{self.manifest['space_id']}: its codes mean something else. Export it from a run "
                "with the same quantizer."
            )
        index, items = _arrays(folder / INDEX)
        shapes = [[list(each.shape), str(each.dtype)] for each in index]
        # Arrays of equal shape may hold a trie with wider nodes than the program looks at.
        if (shapes, manifest["shape"]) != (self.manifest["index"], self.manifest["shape"]):
            raise ValueError(
                f"the index in {folder} has other shapes than the program was compiled for; write "
                "it with `jaxrec export RUN --like EXPORT`, or export a program with more --room."
            )
        self._index, self.items = index, [str(item) for item in items]
        self._row = {item: row for row, item in enumerate(self.items)}

    def __call__(
        self,
        histories: Sequence[Sequence[str]],
        *,
        count: int = 10,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Items and scores for each history, best first.

        Args:
            histories: item ids, oldest first; items that the index does not have are left out, and
                an empty history is somebody new.
            count: items of an answer, at most the program's.
            exclude: items that each answer must not have; those of its history by default.

        Raises:
            ValueError: more items than the program answers or can exclude.
        """
        most, width = self.manifest["k"], self.manifest["denied"]
        if not 1 <= count <= most:
            raise ValueError(f"count={count}: the program answers 1 to {most} items.")
        known = [[self._row[i] for i in map(str, each) if i in self._row] for each in histories]
        gone = known if exclude is None else [
            [self._row[i] for i in map(str, each) if i in self._row] for each in exclude
        ]  # fmt: skip
        gone = [list(dict.fromkeys(each)) for each in gone]
        longest = max(map(len, gone), default=0)
        if longest > width:
            raise ValueError(f"{longest} items to exclude: the program takes {width} a history.")
        read = self.manifest["history"]
        items, scores, valid = self.rank(
            _padded([each[-read:] for each in known], read), _padded(gone, width)
        )
        return [
            [
                (self.items[item], float(score))
                for item, score, ok in zip(items[row], scores[row], valid[row])
                if ok
            ][:count]
            for row in range(len(histories))
        ]

    def rank(
        self, history: np.ndarray, denied: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items, scores and validity of arrays: rows of item numbers, padded with -1.

        Args:
            history: int32 `[b, t]`, oldest first, padded on the right.
            denied: int32 `[b, m]`.
        """
        found = self._call(self._parameters, self._index, jnp.asarray(history), jnp.asarray(denied))
        items, scores, valid = map(np.asarray, found)
        return items, scores, valid


def _manifest(folder: Path) -> dict:
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is no export: it has no {MANIFEST}. `jaxrec export` makes one.")
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _arrays(path: Path) -> tuple[list[jax.Array], np.ndarray]:
    """Arrays of a file in the order of their names, and the item ids if it has them."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; export the run again.")
    with np.load(path, allow_pickle=False) as file:
        names = sorted(name for name in file.files if name != ITEMS)
        items = file[ITEMS] if ITEMS in file.files else np.zeros(0, "U1")
        return [jnp.asarray(file[name]) for name in names], items


def _padded(lists: Sequence[Sequence[int]], width: int) -> np.ndarray:
    array = np.full((len(lists), width), -1, np.int32)
    for row, each in enumerate(lists):
        array[row, : len(each)] = each
    return array
