"""Fetching one file over HTTP(S): resumed, checked, and there whole or not at all.

    TARGET.part          what has arrived so far; a later call continues it (HTTP Range, If-Range)
    TARGET.part.json     what the server said of that file: address, size, ETag, Last-Modified
    TARGET               appears by a rename, after its size and checksum were found right
    TARGET.fetched.json  address, size, SHA-256, time. Where nobody published a checksum, the one
                         of the first fetch is recorded here and holds ever after.

Only the standard library is used; proxies come from the environment, as urllib reads them.
Range requests: RFC 9110, section 14; git's names of contents: `git hash-object`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import http.client
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from jaxrec.data.checksums import HEAD, Expected, digest_of, head_complaint
from jaxrec.data.errors import DataError
from jaxrec.files import lock, read_json, write_json
from jaxrec.tracking import Progress

BLOCK = 1 << 16
"""Bytes that are read from the network at once."""
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that is there and was checked."""

    path: Path
    """Where it is."""
    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of its content, in hexadecimal."""
    checked: str
    """What it was checked against: `published`, `recorded` (by an earlier fetch), or `first use`
    (by nothing; the checksum was recorded now)."""
    new: bool
    """Whether it was fetched now, and not there already."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """One download: what, where to, and how patiently."""

    url: str
    target: Path
    expected: Expected
    timeout: float
    retries: int
    pause: float
    allow_http: bool

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def notes(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def record(self) -> Path:
        return self.target.with_name(self.target.name + ".fetched.json")

    def by_hand(self) -> str:
        return (
            f"The file can also be put there by hand: {self.url} as {self.target} "
            f"({self.expected.words()}); then run the same command."
        )


class _TryAgain(Exception):
    """A failure that may pass: a cut connection, a busy server, silence."""


def download(
    url: str,
    target: Path | str,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    git_blob: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    pause: float = 1.0,
    allow_http: bool = False,
) -> Fetched:
    """Fetches a file, or checks it where it is already there.

    Two processes do not fetch one file at once: the second waits, and finds it done.

    Args:
        url: its address: https, or http on this machine.
        target: the file to make.
        sha256, md5, git_blob: published checksums, in hexadecimal. Without any, the SHA-256 of the
            first fetch is recorded in `TARGET.fetched.json` and holds from then on.
        size: published size in bytes.
        timeout: seconds of silence after which a connection counts as lost.
        retries: how often a lost connection or a busy server is tried again, from where it stopped.
        pause: seconds before the first new try; doubled each time.
        allow_http: whether addresses without encryption may be used.

    Raises:
        DataError: anything that keeps the right file from being there; it says what to do. What
            has arrived stays in `TARGET.part` unless it is known to be wrong.
    """
    job = _Job(
        url=url,
        target=Path(target),
        expected=Expected(size, sha256, md5, git_blob),
        timeout=timeout,
        retries=retries,
        pause=pause,
        allow_http=allow_http,
    )
    check_address(url, allow_http)
    with _alone(job):
        checked, job = _with_record(job)
        new = not job.target.exists()
        notes = _transfer(job) if new else {}
        digest = _checked_digest(job, job.part if new else job.target, checked)
        try:
            if new:
                os.replace(job.part, job.target)
                job.notes.unlink(missing_ok=True)
            if new or checked == "first use":
                write_json(job.record, _new_record(job, digest, notes))
        except OSError as error:
            raise _cannot_write(job, error) from None
    return Fetched(job.target, job.target.stat().st_size, digest, checked, new)


def check_address(url: str, allow_http: bool) -> None:
    """Lets pass https, http on this machine, and all http where that is allowed.

    Raises:
        DataError: any other address.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"{url!r} is no address: {error}.") from None
    if parts.scheme not in ("https", "http") or not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise DataError(f"{url!r} is no address to fetch from; it must begin with https://")
    if parts.scheme == "http" and host not in _LOCAL and not allow_http:
        raise DataError(
            f"{url} is not encrypted: anybody on the way can change the file. Use an https "
            "address, or allow it with --allow-http."
        )


@contextlib.contextmanager
def _alone(job: _Job) -> Generator[None]:
    """Holds the lock of the target; its folder is made when absent."""
    guard = job.target.with_name(f".{job.target.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock(guard, wait=False))
            except BlockingIOError:
                print(f"{job.target.name}: another process fetches it; waiting.", file=sys.stderr)
                stack.enter_context(lock(guard, wait=True))
        except OSError as error:
            raise DataError(
                f"nothing can be written in {job.target.parent} ({error.strerror or error}). "
                "Choose another folder with --to."
            ) from None
        yield


def _with_record(job: _Job) -> tuple[str, _Job]:
    """How the file is going to be checked, and the job with the checksum that counts."""
    if job.expected.has_checksum:
        return "published", job
    if not job.record.exists():
        return "first use", job
    record = read_json(job.record)
    if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
        raise DataError(f"{job.record} records no sha256; delete it to start anew.")
    return "recorded", dataclasses.replace(
        job, expected=dataclasses.replace(job.expected, sha256=record["sha256"])
    )


def _new_record(job: _Job, sha256: str, notes: dict[str, Any]) -> dict[str, Any]:
    return {
        "url": job.url if notes else "put there by hand",
        "sha256": sha256,
        "bytes": job.target.stat().st_size,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "etag": notes.get("etag"),
    }


def _transfer(job: _Job) -> dict[str, Any]:
    """Fills `TARGET.part`, over as many connections as it takes; returns its notes."""
    for attempt in range(job.retries + 1):
        try:
            return _attempt(job)
        except _TryAgain as error:
            if attempt == job.retries:
                kept = job.part.stat().st_size if job.part.exists() else 0
                has = f"{kept:,} bytes are kept in {job.part} and are continued. " if kept else ""
                raise DataError(
                    f"{job.url}: {error} ({attempt + 1} tries). Run the same command again later. "
                    f"{has}{job.by_hand()}"
                ) from None
        time.sleep(job.pause * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _attempt(job: _Job) -> dict[str, Any]:
    """One connection: continues what is there where the file is still the same."""
    notes = _resumable(job)
    start = job.part.stat().st_size if notes else 0
    if notes and start == notes["size"]:
        return notes
    headers = {"User-Agent": "jaxrec", "Accept-Encoding": "identity"}
    if notes:
        headers |= {"Range": f"bytes={start}-", "If-Range": notes["etag"] or notes["modified"]}
    with _open(job, urllib.request.Request(job.url, headers=headers)) as response:
        if response.status == 206 and notes:
            _same_file(job, response, start, notes)
        elif response.status == 200:
            start, notes = 0, _fresh_notes(job, response)
        else:
            raise _TryAgain(f"the server answers {response.status} where the file should come")
        _receive(job, response, start, notes["size"])
    return notes


def _resumable(job: _Job) -> dict[str, Any]:
    """The notes of a part that can be continued; empty where there is none."""
    if not job.part.is_file() or not job.notes.is_file():
        return {}
    with contextlib.suppress(ValueError):
        notes = read_json(job.notes)
        same = isinstance(notes, dict) and notes.get("url") == job.url
        if same and isinstance(notes["size"], int) and (notes["etag"] or notes["modified"]):
            return notes if job.part.stat().st_size <= notes["size"] else {}
    return {}


def _fresh_notes(job: _Job, response: http.client.HTTPResponse) -> dict[str, Any]:
    """Starts anew: what was there goes first, so that notes never describe other bytes."""
    etag = response.headers.get("ETag", "")
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    wanted = job.expected.size
    if response.headers.get_content_type() == "text/html":
        _check_head(job, b"<html")
    if size is not None and wanted is not None and size != wanted:
        raise DataError(
            f"{job.url}: the server offers {size:,} bytes where {wanted:,} are expected: the "
            f"published file was replaced, or this is another one. {job.by_hand()}"
        )
    if size is not None and (free := shutil.disk_usage(job.target.parent).free) < size:
        raise DataError(
            f"{job.target.parent} has {free:,} bytes free and {job.target.name} needs {size:,}. "
            "Make room, or choose another folder with --to."
        )
    notes = {
        "url": job.url,
        "size": size,
        # A weak tag does not promise the same bytes, so it cannot continue a part.
        "etag": "" if etag.startswith("W/") else etag,
        "modified": response.headers.get("Last-Modified", ""),
    }
    try:
        job.part.unlink(missing_ok=True)
        write_json(job.notes, notes)
    except OSError as error:
        raise _cannot_write(job, error) from None
    return notes


def _same_file(
    job: _Job, response: http.client.HTTPResponse, start: int, notes: dict[str, Any]
) -> None:
    """Checks that the rest which a server sends continues the part that is there."""
    pattern = rf"bytes {start}-{notes['size'] - 1}/{notes['size']}"
    etag = response.headers.get("ETag", "")
    if not re.fullmatch(pattern, response.headers.get("Content-Range", "")) or (
        notes["etag"] and etag and etag != notes["etag"]
    ):
        job.part.unlink()
        raise _TryAgain("the rest that the server sent belongs to another file; starting anew")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to an address that could not be asked for directly."""

    def __init__(self, allow_http: bool) -> None:
        self.allow_http = allow_http

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_address(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache
def _opener(allow_http: bool) -> urllib.request.OpenerDirector:
    # Made once: every new one reads the certificates of the system again.
    return urllib.request.build_opener(_Redirects(allow_http))


def _open(job: _Job, request: urllib.request.Request) -> http.client.HTTPResponse:
    """Sends a request; every failure becomes a DataError or a reason to try again."""
    try:
        return _opener(job.allow_http).open(request, timeout=job.timeout)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(job, error.code, error.reason) from None
    except urllib.error.URLError as error:
        raise _unreachable(job, error.reason) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _unreachable(job, error) from None


def _refused(job: _Job, code: int, reason: str) -> Exception:
    """What an HTTP status means for the user."""
    if code in _TRY_LATER:
        return _TryAgain(f"the server answers {code} {reason}")
    if code == 416:
        job.part.unlink(missing_ok=True)
        return _TryAgain("the server cannot continue the part that is there; starting anew")
    if 300 <= code < 400:
        circle = reason.startswith(_Redirects.inf_msg[:30])
        where = "in a circle" if circle else "to what is no address to fetch from"
        meaning = f"the address redirects {where}"
    elif code in (404, 410):
        meaning = f"there is no such file on the server ({code}); it may have moved"
    elif code in (401, 403, 407):
        meaning = f"the server does not hand it out ({code} {reason}); it may need a login"
    else:
        meaning = f"the server answers {code} {reason}"
    return DataError(
        f"{job.url}: {meaning}. Look at the home page, or name another source with --mirror. "
        f"{job.by_hand()}"
    )


def _unreachable(job: _Job, reason: object) -> Exception:
    """What a connection that never came about means for the user."""
    host = urllib.parse.urlsplit(job.url).hostname
    if isinstance(reason, TimeoutError):
        return _TryAgain(f"{host} did not answer within {job.timeout:g} s")
    if isinstance(reason, socket.gaierror):
        meaning = f"the name {host} cannot be resolved; is this machine offline?"
    elif isinstance(reason, ConnectionRefusedError):
        meaning = f"{host} refuses the connection; is this machine offline, or behind a proxy?"
    elif isinstance(reason, ssl.SSLCertVerificationError):
        meaning = f"the certificate of {host} is not valid ({reason.verify_message})"
    elif isinstance(reason, (ConnectionError, http.client.HTTPException, ssl.SSLError)):
        return _TryAgain(f"{host} closed the connection ({reason})")
    else:
        meaning = f"{host} cannot be reached ({reason}); is this machine offline?"
    return DataError(
        f"{job.url}: {meaning} A proxy is named by the environment variable https_proxy. "
        f"{job.by_hand()}"
    )


def _receive(job: _Job, response: http.client.HTTPResponse, start: int, size: int | None) -> None:
    """Appends what a connection brings to the part.

    Raises:
        _TryAgain: the connection ended early.
        DataError: it brings a web page, or nothing can be written.
    """
    done = start
    total = None if size is None else -(-size // 1000)
    with (
        _writing(job, start) as file,
        Progress(total, job.target.name, unit="kB", initial=start // 1000) as progress,
    ):
        while block := _next_block(job, response):
            if done == 0 and len(block) >= HEAD:
                _check_head(job, block)
            try:
                store(file, block)
            except OSError as error:
                raise _cannot_write(job, error) from None
            progress.update((done + len(block)) // 1000 - done // 1000)
            done += len(block)
    if size is not None and done < size:
        raise _TryAgain(f"the connection ended after {done:,} of {size:,} bytes")


def store(file: BinaryIO, block: bytes) -> None:
    """Writes a block and hands it to the system, so that a full disk shows here."""
    file.write(block)
    file.flush()


@contextlib.contextmanager
def _writing(job: _Job, start: int) -> Generator[BinaryIO]:
    """The part, opened at its end, and on the disk when it is closed."""
    try:
        file = job.part.open("ab" if start else "wb")
    except OSError as error:
        raise _cannot_write(job, error) from None
    with file:
        yield file
        os.fsync(file.fileno())


def _next_block(job: _Job, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except TimeoutError:
        raise _TryAgain(f"nothing came for {job.timeout:g} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _TryAgain(f"the connection broke ({error or type(error).__name__})") from None


def _check_head(job: _Job, head: bytes) -> None:
    """Refuses a web page where a file should be, and an archive that begins like none."""
    complaint = head_complaint(job.target.name, head)
    if complaint:
        raise DataError(
            f"{job.url}: {complaint}. The address may want a login or a click first. Look at it in "
            f"a browser. {job.by_hand()}"
        )


def _checked_digest(job: _Job, path: Path, checked: str) -> str:
    """The SHA-256 of a file that is what it should be.

    Raises:
        DataError: it is not. A part is removed then; a file that was there is left alone.
    """
    try:
        with open(path, "rb") as file:
            complaint = head_complaint(job.target.name, file.read(HEAD))
        sha256 = digest_of(path, "sha256")
        complaint = complaint or job.expected.complaint(path, sha256)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    if not complaint:
        return sha256
    if path == job.target:
        raise DataError(
            f"{path} is not the file that is expected: {complaint}. Delete or move it, and run the "
            "same command to fetch it again."
        )
    path.unlink()
    job.notes.unlink(missing_ok=True)
    if checked == "recorded":
        raise DataError(
            f"{job.url}: the file changed since it was first fetched: {complaint}. To accept the "
            f"new one, delete {job.record} and run the same command again."
        )
    raise DataError(
        f"{job.url}: what came is not the published file: {complaint}. It was removed. Run the "
        f"same command again; if that changes nothing, the file was replaced. {job.by_hand()}"
    )


def _cannot_write(job: _Job, error: OSError) -> DataError:
    return DataError(
        f"{job.part} cannot be written ({error.strerror or error}). What has arrived is kept. Make "
        "room, or choose another folder with --to; the same command continues."
    )
