"""Text as numbers: the tokenizer of a language model, or the bytes of the text.

A tokenizer is a component: it is named in the recipe, hashes, and is read when it is first used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BYTES = 256
"""Tokens of text without a tokenizer."""


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Splits text into tokens of a vocabulary.

    Without a file the tokens are the bytes of UTF-8: no vocabulary to train or to ship, for tests
    and small models. With one it is the `tokenizer.json` of a language model (Hugging Face
    `tokenizers`), used as it is; special tokens are written only where a template writes them.

    >>> TextTokenizer().encode(["hi", ""])
    [[104, 105], []]
    >>> TextTokenizer().decode([104, 105])
    'hi'
    """

    path: str = ""
    """A `tokenizer.json`, or a folder that holds one; empty for bytes."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without special tokens of the tokenizer's own.

        Raises:
            ValueError: the file is missing or is no tokenizer.
        """
        if not self.path:
            return [list(text.encode()) for text in texts]
        encodings = _read(self.path).encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers; bytes that are no UTF-8 become replacement characters."""
        if not self.path:
            return bytes(token for token in tokens if token < BYTES).decode(errors="replace")
        return _read(self.path).decode(list(tokens), skip_special_tokens=False)

    @property
    def vocabulary(self) -> int:
        """Number of tokens; a network may have more rows."""
        return _read(self.path).get_vocab_size() if self.path else BYTES

    def fingerprint(self) -> str:
        """Hash of the file; empty for bytes."""
        return hashlib.sha256(_file(self.path).read_bytes()).hexdigest() if self.path else ""


def _file(path: str) -> Path:
    place = Path(path).expanduser()
    return place / "tokenizer.json" if place.is_dir() else place


@functools.lru_cache(maxsize=8)
def _read(path: str) -> Any:
    place = _file(path)
    if not place.is_file():
        raise ValueError(
            f"there is no tokenizer at {place}; give a tokenizer.json or the folder that holds it."
        )
    import tokenizers  # not needed by recipes without text

    try:
        return tokenizers.Tokenizer.from_file(str(place))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{place} is no tokenizer of the `tokenizers` library: {error}") from None
