"""Unpacking archives of strangers: nothing lands outside the folder, nothing grows without bound.

Only plain files and folders are made. Names that are absolute or climb (`..`), links, devices,
encrypted members and anything beyond the stated number of bytes are refused, and then nothing is
left behind: the folder appears whole (`jaxrec.files.publish`).
"""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from jaxrec.data.errors import DataError
from jaxrec.files import file_hash, publish, read_json, write_json

MARKER = ".unpacked.json"
"""Says in an unpacked folder which archive it is of."""
MAX_MEMBERS = 10_000
"""Members that an archive may have."""
_BLOCK = 1 << 20
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    ValueError,
)

Member = tuple[str, int, Callable[[], Any]]
"""Name, declared size in bytes, and what opens the content as a binary file."""


def unpack(
    archive: Path | str, folder: Path | str, members: Iterable[str] | None = None, *, limit: int
) -> Path:
    """Unpacks a .zip, .tar.gz, .tgz, .tar or .gz archive into a folder of its own.

    A folder that this archive made before is left as it is; one that another version made is
    replaced; any other folder is refused.

    Args:
        archive: the file.
        folder: the folder to make.
        members: names of the members that are wanted; all by default.
        limit: bytes that all members together may have, by their headers and when written.

    Returns:
        The folder.

    Raises:
        DataError: an archive that is damaged, malicious, too large or of another kind, a wanted
            member that it lacks, or a folder in the way.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        mark: dict[str, object] = {"archive": archive.name, "sha256": file_hash(archive)}
        wanted = None if members is None else sorted(members)
        if wanted is not None:
            mark["members"] = wanted
        if folder.exists():
            if _mark_of(folder) == mark:
                return folder
            if not (folder / MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
                raise DataError(
                    f"{folder} is there already and was not unpacked by jaxrec; move it away, or "
                    "choose another folder with --to."
                )
        publish(folder, lambda place: _fill(archive, place, wanted, limit, mark))
    except OSError as error:
        raise DataError(
            f"{archive.name} cannot be unpacked into {folder} ({error.strerror or error}). Make "
            "room, or choose another folder with --to."
        ) from None
    return folder


def _mark_of(folder: Path) -> object:
    try:
        return read_json(folder / MARKER)
    except (ValueError, OSError):
        return None


def _fill(
    archive: Path, place: Path, wanted: list[str] | None, limit: int, mark: dict[str, object]
) -> None:
    """Writes the members below a folder."""
    left, seen = limit, set()
    try:
        for number, (name, declared, opened) in enumerate(_members(archive)):
            if number == MAX_MEMBERS:
                raise DataError(f"{archive}: more than {MAX_MEMBERS:,} members; not unpacked.")
            path = safe_path(name, archive)
            if wanted is not None and path.as_posix() not in wanted:
                continue
            if path in seen:
                raise DataError(f"{archive}: the member {name!r} is there twice; not unpacked.")
            seen.add(path)
            if declared > left:
                raise _too_large(archive, limit)
            left -= _copy(opened, place / path, left, lambda: _too_large(archive, limit))
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{archive} is damaged ({error or type(error).__name__}); delete it and fetch it again."
        ) from None
    missing = set(wanted or ()) - {path.as_posix() for path in seen}
    if missing:
        raise DataError(f"{archive} has no member {', '.join(map(repr, sorted(missing)))}.")
    write_json(place / MARKER, mark)


def safe_path(name: str, archive: Path | str) -> PurePosixPath:
    """A member's name as a path below the folder.

    Raises:
        DataError: the name leads elsewhere.

    >>> safe_path("./data/log.csv", "a.zip").as_posix()
    'data/log.csv'
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
    climbs = ".." in parts or re.search(r"[\\\0]", name)
    if absolute or climbs or not parts or parts == [MARKER]:
        raise DataError(
            f"{archive}: the member {name!r} would be written outside the folder; nothing of this "
            "archive was unpacked. Do not trust where it came from."
        )
    return PurePosixPath(*parts)


def _copy(
    opened: Callable[[], Any], path: Path, left: int, too_large: Callable[[], DataError]
) -> int:
    """Writes one member; the bytes are counted, since a header may lie."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with opened() as source, open(path, "xb") as file:
        while block := source.read(_BLOCK):
            done += len(block)
            if done > left:
                raise too_large()
            file.write(block)
    return done


def _too_large(archive: Path, limit: int) -> DataError:
    return DataError(
        f"{archive}: its members have more than the {limit:,} bytes that this data set can have; "
        "nothing was unpacked. Do not trust where it came from."
    )


def _members(archive: Path) -> Iterator[Member]:
    """The plain files of an archive, in its order."""
    name = archive.name.lower()
    if name.endswith(".zip"):
        yield from _zip_members(archive)
    elif name.endswith((".tar.gz", ".tgz", ".tar")):
        yield from _tar_members(archive)
    elif name.endswith(".gz"):
        yield archive.name[:-3], 0, lambda: gzip.GzipFile(archive)
    else:
        raise DataError(f"{archive} is no archive; known are .zip, .tar.gz, .tgz, .tar and .gz.")


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(archive, info.filename)
            if info.flag_bits & 1:
                raise DataError(f"{archive}: the member {info.filename!r} is encrypted.")
            if info.is_dir():
                safe_path(info.filename, archive)
                continue
            yield info.filename, info.file_size, lambda info=info: file.open(info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        for info in file:
            if info.isdir():
                if info.name not in (".", ""):
                    safe_path(info.name, archive)
                continue
            if not info.isreg():
                raise _not_plain(archive, info.name)
            yield info.name, info.size, lambda info=info: _opened(file, info)


def _opened(file: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    content = file.extractfile(info)
    assert content is not None, "a regular member has content"
    return content


def _not_plain(archive: Path, name: str) -> DataError:
    return DataError(
        f"{archive}: the member {name!r} is a link or a device, not a plain file; nothing of this "
        "archive was unpacked. Do not trust where it came from."
    )
