"""Files that are either whole or absent: atomic writes, atomic folders, content hashes, locks.

Everything jaxrec leaves on disk goes through here, so that a kill at any moment leaves the old
file or the new one, and never half of either.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

_TEMPORARY = ".tmp-"
_NPY = b"\x93NUMPY"


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replaces a file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; an artefact is as readable as the user's other files.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path: Path | str, content: str) -> None:
    """Replaces a text file (UTF-8) atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path | str, content: Any) -> None:
    """Replaces a JSON file atomically; keys keep their order, NaN is refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is missing, truncated or not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        # Not JSON, not UTF-8, numbers of thousands of digits, thousands of nested lists.
        raise ValueError(
            f"{path} is not readable as JSON ({error}); it is truncated or corrupted. "
            "Delete its folder and run the stage again."
        ) from None


def read_array(path: Path | str, *, mapped: bool = False) -> np.ndarray:
    """Reads a .npy file, which holds no Python objects.

    Args:
        path: of the file.
        mapped: map it into memory, read-only, instead of reading it.

    Raises:
        ValueError: the file is missing, truncated or not a .npy; the message names it. No memory is
            taken for numbers that the file does not have.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_NPY)) != _NPY:
                raise ValueError("it does not begin as .npy files do")
        # Mapping compares the header with the size of the file before any memory is taken.
        array = np.lib.format.open_memmap(path, mode="r")
        return array if mapped else np.array(array)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    # numpy evaluates a damaged header as Python, which fails in every way that Python can.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path} is not readable as .npy ({reason}); it is truncated or corrupted. "
            "Delete its folder and run the stage again."
        ) from None


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_hash(content: Any) -> str:
    """SHA-256 of a JSON value in canonical form: equal values, equal hashes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def folder_hash(folder: Path | str, leave_out: tuple[str, ...] = ()) -> str:
    """SHA-256 over the names and contents of all files below a folder."""
    folder = Path(folder)
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in leave_out
    )
    return json_hash([[path.relative_to(folder).as_posix(), file_hash(path)] for path in files])


def publish(folder: Path | str, fill: Callable[[Path], None]) -> None:
    """Makes a folder appear whole: fills a hidden neighbour, then renames it.

    A folder that is already there is replaced only after the new one is complete.

    Args:
        folder: the folder to make.
        fill: writes the content below the path it is given.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{folder.name}.", dir=folder.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        fill(temporary)
        if folder.exists():
            trash = temporary.with_name(temporary.name + ".old")
            os.rename(folder, trash)
            os.rename(temporary, folder)
            shutil.rmtree(trash)
        else:
            os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sweep_leftovers(parent: Path | str) -> None:
    """Removes what killed writers left in a folder. Call it under the folder's lock."""
    for path in Path(parent).glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path | str, *, wait: bool) -> Generator[None]:
    """Holds an exclusive lock; the kernel releases it when the process dies, however it dies.

    Args:
        path: the lock's file, made when absent and left behind.
        wait: whether to wait for the holder, or to fail at once.

    Raises:
        BlockingIOError: somebody else holds it and `wait` is False.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept: $JAXREC_CACHE, or ~/.cache/jaxrec."""
    return Path(os.environ.get("JAXREC_CACHE") or Path.home() / ".cache" / "jaxrec")


def _umask() -> int:
    # The only way to read the mask is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
