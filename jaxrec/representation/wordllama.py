"""WordLlama: token embeddings distilled from a language model, averaged over the text.

A real pretrained encoder whose weights ship in its wheel, so it works without any download.
Source: https://github.com/dleemiller/WordLlama (MIT).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxrec.representation.encoder import TrainingSequences, fill_empty
from jaxrec.representation.text import Table
from jaxrec.tracking import Progress

SHIPPED_DIMENSION = 256
DIMENSIONS = (64, 128, 256)
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class WordLlama:
    """Mean of the pretrained token vectors of a text (`l2_supercat`, 256 dimensions).

    The vectors are as WordLlama makes them, not normalised; `L2()` is the usual first step. Fewer
    dimensions are the first ones of 256 (the model is trained for that). A text's vector does not
    depend on the texts around it. An empty text gets the constant vector.

    Raises:
        ValueError: a dimension the wheel's weights do not offer.
        ImportError: (in `encode`) wordllama is not installed.
    """

    dimension: int = SHIPPED_DIMENSION
    """Width of the vectors: 64, 128 or 256."""

    schema_version: ClassVar[int] = 1
    reads_text: ClassVar[bool] = True
    surrogate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dimension not in DIMENSIONS:
            raise ValueError(
                f"WordLlama offers {', '.join(map(str, DIMENSIONS))} dimensions (the weights in "
                f"its wheel), got {self.dimension}."
            )

    def encode(
        self,
        texts: list[str],
        *,
        table: Table,
        fit_mask: np.ndarray,
        seed: int,
        sequences: TrainingSequences | None = None,
    ) -> np.ndarray:
        """Vectors of the texts, float32[n, dimension]. Nothing is learnt, nothing is random."""
        del table, fit_mask, seed, sequences
        model = _load(self.dimension)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        with Progress(len(texts), "WordLlama", unit="texts") as progress:
            for start in range(0, len(texts), _BATCH):
                batch = texts[start : start + _BATCH]
                vectors[start : start + len(batch)] = model.embed(batch, batch_size=_BATCH)
                progress.update(len(batch))
        empty = np.array([not text.strip() for text in texts], bool)
        return fill_empty(vectors, empty | ~vectors.any(1))


def _load(dimension: int) -> Any:
    with _quiet_import():
        try:
            import wordllama
        except ImportError as error:
            raise ImportError(
                "the WordLlama encoder needs the package wordllama; install it with "
                "`pip install wordllama`, or use HashedTfidf() or Precomputed(path)."
            ) from error
    # Its own search looks for the tokenizer in `tokenizer/`, but the wheel has `tokenizers/`:
    # without this folder as the cache, loading fails offline although everything is there.
    package = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(
        dim=SHIPPED_DIMENSION,
        trunc_dim=None if dimension == SHIPPED_DIMENSION else dimension,
        cache_dir=package,
        disable_download=True,
    )


@contextlib.contextmanager
def _quiet_import() -> Generator[None]:
    # Importing wordllama configures the root logger of the whole process.
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
