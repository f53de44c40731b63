"""`jaxrec data fetch`: the public data sets, fetched and checked, or listed."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrec.data.public_set import PublicFile, PublicSet

CHECKED = {
    "published": "checksum is the published one",
    "recorded": "no published checksum; equal to the one recorded on first use",
    "first use": "no published checksum; recorded on first use",
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Fetch a public data set by its name, check it, unpack it, and say how to import it.

    Without a name: list the sets.
    """

    to: Path | None = None
    """Folder to put it in; by default $JAXREC_CACHE/data/NAME, or ~/.cache/jaxrec/data/NAME."""
    accept: bool = False
    """I have read and accept the terms of a set that asks for that."""
    mirror: str = ""
    """Address of a folder that has the files under their own names, instead of the publisher's."""
    allow_http: bool = False
    """Allow addresses without encryption."""
    timeout: float = 30.0
    """Seconds of silence after which a connection counts as lost."""
    retries: int = 4
    """How often a lost connection or a busy server is tried again."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it."""
    import tyro

    from jaxrec.data.public import SETS, find_set

    name, rest = ("", words) if not words or words[0].startswith("-") else (words[0], words[1:])
    options = tyro.cli(Arguments, args=rest, prog=f"jaxrec data fetch {name or '[NAME]'}")
    if not name:
        print(listing(SETS))
        return 0
    return _fetch(find_set(name), options)


def listing(sets: tuple[PublicSet, ...]) -> str:
    """All sets for people: name, size, title, licence, reader; a family of sets is one entry."""
    lines = []
    for family, members in groupby(sets, key=lambda each: each.family or each.name):
        first, *others = members
        if others:
            names = ", ".join(each.name.removeprefix(f"{family}-") for each in (first, *others))
            lines.append(f"{family}-CATEGORY  [{len(others) + 1} sets, size told when fetched]")
            lines.append(f"    {first.title.split(':')[0]}")
            lines += _wrapped(f"CATEGORY is one of: {names}")
        else:
            lines.append(f"{first.name}  [{_size(first)}]")
            lines.append(f"    {first.title}")
        lines += _wrapped(f"licence: {first.licence}")
        lines.append(f"    read by: jaxrec data import {first.format}")
    lines.append("\n`jaxrec data fetch NAME` fetches one and says how to import it.")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, 92, break_on_hyphens=False)
    return [f"    {line}" for line in lines]


def _size(each: PublicSet) -> str:
    if not each.files:
        return "to be fetched by hand"
    if each.size is None:
        return "size told when fetched"
    return f"{each.size / 1e6:,.1f} MB"


def _fetch(chosen: PublicSet, options: Arguments) -> int:
    from jaxrec.files import cache_folder

    folder = options.to or cache_folder() / "data" / chosen.name
    print(f"{chosen.name}: {chosen.title}\n  licence: {chosen.licence}")
    print(f"  cite: {chosen.citation}\n  home page: {chosen.homepage}")
    if not chosen.files:
        print(f"\n{chosen.name} cannot be fetched by a program.")
        print(chosen.manual.format(folder=folder))
        print(f"\nThen:\n{next_steps(chosen, folder)}")
        return 2
    if chosen.terms and not options.accept:
        print(f"\nIts publisher asks to accept the terms first: {chosen.terms}")
        print(f"Read them; if you accept, run: jaxrec data fetch {chosen.name} --accept")
        return 2
    for file in chosen.files:
        _fetch_file(file, folder, options)
    if chosen.remark:
        print(chosen.remark)
    print(f"\nNext:\n{next_steps(chosen, folder)}")
    return 0


def _fetch_file(file: PublicFile, folder: Path, options: Arguments) -> None:
    from jaxrec.data.fetch import download
    from jaxrec.data.unpack import unpack

    base = options.mirror.rstrip("/")
    fetched = download(
        f"{base}/{file.name}" if base else file.url,
        folder / file.name,
        sha256=file.sha256,
        md5=file.md5,
        git_blob=file.git_blob,
        size=file.size,
        timeout=options.timeout,
        retries=options.retries,
        allow_http=options.allow_http,
    )
    state = "fetched" if fetched.new else "there already"
    print(f"{fetched.path}: {state}, {fetched.size:,} bytes, {CHECKED[fetched.checked]}")
    if file.unpack_to is not None:
        place = unpack(fetched.path, folder / file.unpack_to, limit=file.limit)
        print(f"{place}: unpacked")


def next_steps(chosen: PublicSet, folder: Path) -> str:
    """The commands that turn a fetched set into a dataset folder."""
    flags = [flag.format(folder=folder) for flag in chosen.flags]
    words = ["jaxrec", "data", "import", chosen.format, str(folder / chosen.path), *flags]
    commands = [f"(cd {shlex.quote(str(folder))} && {each})" for each in chosen.prepare]
    commands.append(shlex.join([*words, "--out", f"datasets/{chosen.name}"]))
    return "\n".join(f"  {each}" for each in commands)
