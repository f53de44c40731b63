"""What a fetched file should be: its size, its checksums, and how it begins."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

MAGIC = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".gz": (b"\x1f\x8b",), ".tgz": (b"\x1f\x8b",)}
"""How files of these names begin."""
HEAD = 64
"""Bytes that are enough to know a web page or an archive."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a publisher says of a file; None is what nobody says."""

    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """SHA-256, in hexadecimal."""
    md5: str | None = None
    """MD5, in hexadecimal."""
    git_blob: str | None = None
    """Name that git gives the content: SHA-1 of `blob SIZE`, a zero byte, and the bytes."""

    @property
    def has_checksum(self) -> bool:
        """Whether any checksum is known."""
        return any((self.sha256, self.md5, self.git_blob))

    def words(self) -> str:
        """Size and checksums, for people."""
        size = [] if self.size is None else [f"{self.size:,} bytes"]
        sums = [f"{name} {value}" for name, value in self._sums().items()]
        return ", ".join(size + sums) or "no size or checksum published"

    def complaint(self, path: Path, sha256: str) -> str:
        """What is wrong with a file; empty where nothing is.

        Args:
            path: of the file.
            sha256: of its content, which the caller knows already.
        """
        if self.size is not None and path.stat().st_size != self.size:
            return f"it has {path.stat().st_size:,} bytes, not {self.size:,}"
        for name, value in self._sums().items():
            found = sha256 if name == "sha256" else digest_of(path, name)
            if found != value.lower():
                return f"its {name} is {found}, not {value}"
        return ""

    def _sums(self) -> dict[str, str]:
        return {
            name: value
            for name in ("sha256", "md5", "git_blob")
            if (value := getattr(self, name)) is not None
        }


def head_complaint(name: str, head: bytes) -> str:
    """What is wrong with the first bytes of a file; empty where nothing is.

    >>> head_complaint("log.json", b"<!DOCTYPE html><html>")
    'what came is a web page and not log.json'
    >>> head_complaint("log.zip", bytes(4))
    'what came does not begin like a .zip file'
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return f"what came is a web page and not {name}"
    suffix = Path(name).suffix.lower()
    if suffix in MAGIC and not head.startswith(MAGIC[suffix]):
        return f"what came does not begin like a {suffix} file"
    return ""


def digest_of(path: Path, name: str) -> str:
    """A checksum of a file, in hexadecimal.

    Args:
        path: of the file.
        name: `sha256`, `md5` or `git_blob`.
    """
    with open(path, "rb") as file:
        if name == "git_blob":
            size = path.stat().st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        return hashlib.file_digest(
            file, lambda: hashlib.new(name, usedforsecurity=False)
        ).hexdigest()
