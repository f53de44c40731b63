"""What `quality.py` runs: methods, data sets, budgets, and the command line of each cell.

Everything that may be tuned by hand stands in the tables at the top. A cell is one data set under
one order of ties with one seed and one method; its run is `jaxrec run CONFIG FLAGS`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jaxrec.files import publish, write_text

ROOT = Path(__file__).resolve().parent.parent
DATA = os.environ.get("JAXREC_DATA", "../shared/data")
"""Folder of the data sets, from the checkout."""

METHODS = {
    "sasrec-ce": "configs/sasrec.py",
    "sasrec-bce": "configs/sasrec_bce.py",
    "sasrec-sampled": "configs/sasrec_sampled.py",
    "bert4rec": "configs/bert4rec.py",
    "gru4rec": "configs/gru4rec.py",
    "caser": "configs/caser.py",
    "decoder": "configs/beauty_decoder.py",
    "tiger": "configs/tiger_cpu.py",
}
"""Trained methods; untrained counters run inside every report."""

SEMANTIC = ("decoder", "tiger")
"""Methods that read item texts and write semantic IDs."""

OWN = "recipe"
"""The data set that each recipe names itself."""

SOURCES = {
    "beauty": ("--data.source.path", f"{DATA}/amazon2014-beauty"),
    "sports": ("--data.source.path", f"{DATA}/amazon2014-sports"),
    "ml-1m": ("--data.source.path", f"{DATA}/movielens-1m"),
    "ml-100k": ("--data.source.path", "STATE/data/ml-100k"),
    OWN: (),
}
"""Flags of each data set; STATE is the benchmark's folder."""

TEXTS = {
    "beauty": ("title", "brand_and_categories"),
    "sports": ("title_words", "brand_and_categories"),
    "ml-1m": ("title", "genres"),
    "ml-100k": ("title", "genres", "year"),
}
"""Columns of items.jsonl that the text encoder reads. Sports has no titles, only their words."""

WITHOUT_TIMES = ("ml-1m",)
"""Data sets whose log has an order and no clock: there is no tie that could be shuffled."""

STEPS = {
    "beauty": {
        "sasrec-ce": 2000, "sasrec-bce": 5000, "sasrec-sampled": 2000, "bert4rec": 2000,
        "gru4rec": 2000, "caser": 2000, "decoder": 1000, "tiger": 4500,
    },
    "sports": {
        "sasrec-ce": 2500, "sasrec-bce": 6000, "sasrec-sampled": 2500, "bert4rec": 2000,
        "gru4rec": 2500, "caser": 2500, "decoder": 1500, "tiger": 5000,
    },
    "ml-1m": {
        "sasrec-ce": 6000, "sasrec-bce": 4000, "sasrec-sampled": 4000, "bert4rec": 6000,
        "gru4rec": 4000, "caser": 4000, "decoder": 3000, "tiger": 10000,
    },
    "ml-100k": {
        "sasrec-ce": 1500, "sasrec-bce": 1500, "sasrec-sampled": 1500, "bert4rec": 2500,
        "gru4rec": 1500, "caser": 1500, "decoder": 800, "tiger": 3000,
    },
}  # fmt: skip
"""Training steps by data set and method; where none is given, those of the recipe."""

VALIDATIONS = 10
"""Validations that a method may use at most where `STEPS` gives its steps."""

VALIDATION_CASES = 2000
"""Cases of one validation, the same for every method; 0 answers all."""

LENGTHS = {"ml-1m": 200, "ml-100k": 200}
"""Events of a history that are read, where they are more than the recipe's."""

WITH_POSITIONS = ("sasrec-ce", "sasrec-bce", "sasrec-sampled", "bert4rec")
"""Methods whose network has a table of positions as long as the history."""

MORE = {
    # 2.2 epochs, all that this table could pay for, in small batches that make the most of them;
    # validation by beams is dear.
    ("beauty", "tiger"): (
        *("--stages.0.feed.rows", "64", "--stages.0.fit.microbatches", "4"),
        *("--stages.0.validation-cases", "500", "--stages.0.fit.validate-every", "1000"),
    ),
    # Long histories of many events: the paper's dropout for this data set.
    ("ml-1m", "sasrec-ce"): ("--generator.dropout", "0.2"),
    ("sports", "decoder"): ("--generator.item-buckets", "18432"),
    ("ml-1m", "decoder"): ("--generator.item-buckets", "3584"),
    ("ml-100k", "decoder"): ("--generator.item-buckets", "2048"),
    ("ml-100k", "tiger"): ("--tokenizer.quantizer.codes", "64"),
}
"""Further flags of one method on one data set; they come last and win."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    dataset: str
    protocol: str
    """Order of ties: `file`, `item` or `shuffle:N`."""
    seed: int
    method: str
    config: str
    """Recipe file, from the checkout."""
    more: tuple[str, ...] = ()
    """Flags for every cell, after all others."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.dataset}-{self.method}-{self.protocol.replace(':', '')}-s{self.seed}"

    def words(self) -> list[str]:
        """Words after `jaxrec`; STATE stands for the benchmark's folder."""
        fixed = ["--name", self.name, "--runs", "STATE/runs", "--seed", str(self.seed)]
        flags = merge(
            [*SOURCES[self.dataset], *self._texts(), *self._budget(), *self._length(),
             *MORE.get((self.dataset, self.method), ()), *self.more]
        )  # fmt: skip
        return ["run", self.config, *fixed, "--data.ties", self.protocol, *flags]

    def _texts(self) -> list[str]:
        if self.method not in SEMANTIC or self.dataset not in TEXTS:
            return []
        return ["--items.text.fields", *TEXTS[self.dataset]]

    def _budget(self) -> list[str]:
        if self.dataset == OWN:
            return []
        flags = ["--stages.0.validation-cases", str(VALIDATION_CASES)]
        if steps := STEPS[self.dataset].get(self.method):
            every = str(max(1, steps // VALIDATIONS))
            flags += ["--stages.0.fit.steps", str(steps), "--stages.0.fit.validate-every", every]
            flags += ["--stages.0.fit.checkpoint-every", every]
        return flags

    def _length(self) -> list[str]:
        length = str(LENGTHS.get(self.dataset, ""))
        if not length or self.method in ("tiger",):
            return []
        # One event more than is read, so that the position of the question is trained.
        row = str(LENGTHS[self.dataset] + 1)
        flags = ["--stages.0.feed.length", row, "--evaluation.history", length]
        if self.method in WITH_POSITIONS:
            flags += ["--generator.length", length]
        return flags


def merge(flags: Sequence[str]) -> list[str]:
    """Flags with their values, each once: the last one given wins.

    >>> merge(["--a", "1", "--b", "x", "y", "--a", "2"])
    ['--a', '2', '--b', 'x', 'y']
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in flags:
        if re.match(r"--[a-z]", word):
            name, found[word] = word, []
        else:
            found[name].append(word)
    return [word for name, values in found.items() for word in (name, *values)]


def plan(
    datasets: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    methods: Sequence[str],
    more: Sequence[str] = (),
) -> list[Cell]:
    """The cells in the order in which they run.

    Args:
        datasets: names in `SOURCES`.
        protocols: `file`, `item` or `shuffle:N`; data sets without times take no `shuffle:N`.
        seeds: of the training.
        methods: names in `METHODS`, `NAME=RECIPE.py`, or `all`.
        more: flags for every cell.

    Raises:
        ValueError: an unknown data set, protocol or method.
    """
    configs = dict(pair for method in methods for pair in _configs(method))
    for dataset in datasets:
        if dataset not in SOURCES:
            raise ValueError(f"there is no data set {dataset!r}; choose from {', '.join(SOURCES)}.")
    for protocol in protocols:
        if not re.fullmatch(r"file|item|shuffle:\d+", protocol):
            raise ValueError(f"protocol {protocol!r} is none of file, item and shuffle:N.")
    return [
        Cell(dataset, protocol, seed, method, config, tuple(more))
        for dataset in datasets
        for protocol in protocols
        if dataset not in WITHOUT_TIMES or not protocol.startswith("shuffle")
        for seed in seeds
        for method, config in configs.items()
    ]


def _configs(method: str) -> list[tuple[str, str]]:
    """(name, recipe file) of a word after `--methods`."""
    if method == "all":
        return list(METHODS.items())
    name, given, config = method.partition("=")
    if given:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{method!r}: a method's name is of letters, digits, '.', '_', '-'.")
        return [(name, config)]
    if name not in METHODS:
        raise ValueError(
            f"there is no method {name!r}; choose from {', '.join(METHODS)}, or give NAME=RECIPE.py"
        )
    return [(name, METHODS[name])]


def prepare_source(dataset: str, state: Path) -> None:
    """Writes MovieLens-100K as sequences.txt, timestamps.txt and items.jsonl, which the recipes
    read; the other data sets lie there already."""
    folder = state / "data" / "ml-100k"
    if dataset != "ml-100k" or (folder / "items.jsonl").is_file():
        return
    import json
    import tempfile

    from jaxrec.data.dataset import DatasetFolder
    from jaxrec.data.datasets.movielens import MovieLens100K

    files = ROOT / DATA / "movielens-100k"
    source = MovieLens100K(str(files) if files.is_dir() else None)
    with tempfile.TemporaryDirectory() as temporary:
        source.write(temporary)
        log, items = (DatasetFolder(temporary).interactions(), DatasetFolder(temporary).items())
    # Stable: equal times keep the order of the log.
    log = log.sort("timestamp", maintain_order=True)
    rows = log.group_by("user", maintain_order=True).agg("item", "timestamp").iter_rows()
    sequences, times = [], []
    for user, events, stamps in rows:
        sequences.append(f"{user} {' '.join(map(str, events))}\n")
        times.append(f"{user} {' '.join(map(str, stamps))}\n")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in items.iter_rows(named=True)]

    def fill(made: Path) -> None:
        write_text(made / "sequences.txt", "".join(sequences))
        write_text(made / "timestamps.txt", "".join(times))
        write_text(made / "items.jsonl", "".join(lines).replace('{"item": ', '{"item_id": '))

    publish(folder, fill)
