"""`jaxrec extend`: semantic IDs for new items of a run, with its codebooks as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxrec.commands.overrides import UsageError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes a new version of a run's index: new items get semantic IDs, old ones keep theirs.

    The token space stays, so the trained generator stays valid. The folder holds the index
    (semantic_ids.json, semantic_ids.npz), what was done (extended.json), and how well the codebooks
    fit the new items (drift.json).
    """

    vectors: Path
    """One vector per new item (.npy, .safetensors), made by the run's own representation, its
    steps included."""
    ids: Path
    """Ids of the new items, one a line, in the order of the vectors; the first is served first."""
    out: Path
    """Folder to make; it must not exist."""
    index: Path | None = None
    """An earlier version to go on from, a folder that this command made; the run's own index
    without it."""


def main(words: list[str]) -> int:
    """Runs the command on the words after it.

    Raises:
        UsageError: no run, or a folder that exists.
        ValueError: whatever does not fit; see `jaxrec.pipeline.extend`.
    """
    import tyro

    if words[:1] in (["-h"], ["--help"]):
        words = ["RUN", "--help"]
    elif not words or words[0].startswith("-"):
        raise UsageError(
            "`jaxrec extend` needs a run, for example: runs/quickstart --vectors new.npy "
            "--ids ids.txt --out FOLDER"
        )
    options = tyro.cli(Arguments, args=words[1:], prog=f"jaxrec extend {words[0]}")
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists; name a folder that does not")

    from jaxrec.pipeline.extend import extend_run, read_items

    items = read_items(options.ids)
    version = extend_run(Path(words[0]), options.vectors, items, index=options.index)
    version.save(options.out)
    for line in _tell(version.report, version.drift):
        print(line)
    print(f"index: {options.out}")
    return 0


def _tell(report: dict[str, Any], drift: dict[str, Any]) -> list[str]:
    """What happened, for people."""
    levels = drift["levels"]
    far = ", ".join(f"{level['beyond']:.1%}" for level in levels)
    lines = [
        f"{report['n_new']:,} new items beside {report['n_old']:,}; "
        f"{report['n_old_ids_shared']:,} have the codes of an old one "
        f"({report['collisions']['policy']})",
        f"parent {report['parent'][:12]}..., now {report['final']['assignment_id'][:12]}..., "
        "token space unchanged",
        f"farther from their codes than 99 % of the old items, level by level: {far}",
    ]
    return [*lines, *drift["advice"]]
