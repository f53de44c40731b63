"""MovieLens-100K, the embedded default, out of the RecBole wheel that any package index carries.

The wheel is fetched by pip, checked and read as a zip file; it is never installed or imported.
The data set: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context",
ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from jaxrec.data.dataset import DataError
from jaxrec.data.datasets.recbole import RecBoleFiles
from jaxrec.files import cache_folder, file_hash

WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_REQUIREMENT = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER_IN_WHEEL = "recbole/dataset_example/ml-100k"
NAME = "ml-100k"
LICENCE = (
    "MovieLens usage licence of GroupLens, University of Minnesota: research use with citation, "
    "no redistribution without permission, no commercial use without permission "
    "(https://files.grouplens.org/datasets/movielens/ml-100k-README.txt)"
)
_PIP_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class MovieLens100K:
    """100,000 ratings of 1,682 films by 943 users, 1997-98, with title, year and genres.

    Every rating is an event; the rating itself is kept as `value`.
    """

    path: str | None = None
    """Folder with ml-100k.inter and ml-100k.item, or the wheel recbole-1.2.1 itself. By default
    pip fetches the wheel once into $JAXREC_CACHE, or ~/.cache/jaxrec."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the canonical dataset folder.

        Raises:
            DataError: the wheel cannot be fetched or is another one, or files are missing.
        """
        if self.path is not None and Path(self.path).is_dir():
            self._files(self.path).write(folder)
            return
        wheel = self._wheel()
        with tempfile.TemporaryDirectory() as temporary:
            with zipfile.ZipFile(wheel) as archive:
                for suffix in ("inter", "item"):
                    content = archive.read(f"{FOLDER_IN_WHEEL}/{NAME}.{suffix}")
                    Path(temporary, f"{NAME}.{suffix}").write_bytes(content)
            self._files(temporary).write(folder)

    def fingerprint(self) -> dict[str, Any]:
        """SHA-256 of the wheel, or of the files. Does not fetch anything.

        Raises:
            DataError: `path` names nothing.
        """
        if self.path is not None and Path(self.path).is_dir():
            return self._files(self.path).fingerprint()
        if self.path is not None:
            check_wheel(Path(self.path))
        return {WHEEL: {"sha256": WHEEL_SHA256}}

    def _wheel(self) -> Path:
        if self.path is None:
            return fetch_wheel(cache_folder())
        return check_wheel(Path(self.path))

    def _files(self, folder: str) -> RecBoleFiles:
        return RecBoleFiles(
            path=folder,
            name=NAME,
            item_columns=(("movie_title", "title"), ("release_year", "year"), ("class", "genres")),
            source=f"MovieLens-100K (GroupLens) as atomic files of {WHEEL_REQUIREMENT}",
            licence=LICENCE,
        )


def check_wheel(path: Path) -> Path:
    """Returns the path if it is the RecBole wheel this reader knows.

    Raises:
        DataError: no such file, or another checksum.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Give a folder with {NAME}.inter and {NAME}.item, or the file "
            f"{WHEEL}."
        )
    if (found := file_hash(path)) != WHEEL_SHA256:
        raise DataError(
            f"{path} is not {WHEEL}: its SHA-256 is {found}, expected {WHEEL_SHA256}. Delete it "
            f"and fetch it again with `pip download --no-deps {WHEEL_REQUIREMENT}`."
        )
    return path


def fetch_wheel(cache: Path) -> Path:
    """Gives the checked wheel, fetching it with pip where the cache does not hold it.

    Raises:
        DataError: pip cannot fetch it (offline, no pip), or fetched something else.
    """
    wheel = cache / WHEEL
    if wheel.is_file() and file_hash(wheel) == WHEEL_SHA256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--timeout", "30", "--retries", "2"]
        command += ["--dest", temporary, WHEEL_REQUIREMENT]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS)
            reason = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired:
            reason = [f"pip took longer than {_PIP_SECONDS} seconds"]
        fetched = Path(temporary) / WHEEL
        if not fetched.is_file():
            raise DataError(
                f"MovieLens-100K comes inside the package {WHEEL_REQUIREMENT}, and pip could not "
                f"fetch it ({''.join(reason) or 'no such wheel'}). Where there is a network, run "
                f"`pip download --no-deps {WHEEL_REQUIREMENT}`; then put {WHEEL} into {cache}, or "
                "name it (or a folder with ml-100k.inter and ml-100k.item): "
                "MovieLens100K(path=...)."
            )
        os.replace(check_wheel(fetched), wheel)
    return wheel
