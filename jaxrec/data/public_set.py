"""What is known of a public data set before it is fetched."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class PublicFile:
    """One file of a public data set."""

    url: str
    """Its address."""
    name: str
    """Where it is put, below the folder of the set."""
    size: int | None = None
    """Bytes, where known."""
    sha256: str | None = None
    """Published or independently recorded SHA-256."""
    md5: str | None = None
    """Published MD5."""
    git_blob: str | None = None
    """Name that git gives its content."""
    unpack_to: str | None = None
    """Folder, below the folder of the set, that an archive is unpacked into."""
    limit: int = 0
    """Bytes that the archive may unpack to."""


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A public data set and everything a user must know before fetching it."""

    name: str
    """What `jaxrec data fetch` calls it."""
    title: str
    """One line of description."""
    licence: str
    """Terms of use, as far as the publisher states them."""
    citation: str
    """Paper to cite."""
    homepage: str
    """The publisher's page."""
    format: str
    """Reader of `jaxrec data import`."""
    path: str = "."
    """What that reader is given, below the folder of the set."""
    flags: tuple[str, ...] = ()
    """Flags of that reader; `{folder}` is the folder of the set."""
    files: tuple[PublicFile, ...] = ()
    """What is fetched; empty for a set that must be fetched by hand."""
    manual: str = ""
    """What to do for a set that cannot be fetched by a program."""
    terms: str = ""
    """Address of terms that must be accepted first; empty where none must."""
    prepare: tuple[str, ...] = ()
    """Shell commands, run in the folder of the set, that the reader needs first."""
    remark: str = ""
    """What else to know."""
    family: str = ""
    """Sets that are listed together."""

    @property
    def size(self) -> int | None:
        """Bytes to fetch; None where a size is not known or nothing is fetched."""
        sizes = [file.size for file in self.files]
        return sum(filter(None, sizes)) if sizes and None not in sizes else None


def files_of_commit(
    repository: str, commit: str, blobs: Mapping[str, tuple[str, int | None, str]]
) -> tuple[PublicFile, ...]:
    """Files of a repository on GitHub as they were at a commit.

    Args:
        repository: `owner/name`.
        commit: its full name.
        blobs: for each path in the repository the local name, the bytes where known, and the name
            that git gives the content.
    """
    base = f"https://raw.githubusercontent.com/{repository}/{commit}"
    return tuple(
        PublicFile(f"{base}/{urllib.parse.quote(path)}", name, size=size, git_blob=blob)
        for path, (name, size, blob) in blobs.items()
    )
