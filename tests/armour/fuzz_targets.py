"""What is fuzzed, and what must hold for every damaged input.

The property: a reader writes a dataset folder that holds, or raises a DataError; a loader returns,
or raises a ValueError of jaxrec's own. The message is short and no traceback, and nothing is
written or changed outside the folder that was asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutate import HOSTILE, Files, mutate, random_files, unparsable
from fuzz_seeds import SEEDS, Seed

import jaxrec
from jaxrec.commands.data_import import formats, reader

LONGEST_MESSAGE = 2000
_HOME = str(Path(jaxrec.__file__).parent)


class Broken(AssertionError):
    """The property does not hold for an input."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader or loader."""

    name: str
    seeds: tuple[Seed, ...]
    load: Callable[[Seed, Path, Path], None]
    """Gets the seed, the folder of its files, and the folder to write; raises ValueError."""
    reseal: Callable[[Files], None] | None = None
    """Makes checksums fit the damaged contents, so that what is behind them is reached."""
    refusal: type[Exception] = ValueError
    """What a refusal must be."""


def reader_targets() -> list[Target]:
    """Every format of `jaxrec data import`."""
    from jaxrec.data.errors import DataError

    return [
        Target(
            name,
            SEEDS()[name],
            functools.partial(_import, name),
            _reseal_dataset if name == "canonical" else None,
            DataError,
        )
        for name in formats()
    ]


def loader_targets() -> list[Target]:
    """Everything that reads what jaxrec, or somebody, left on disk."""
    return [
        Target("histories", (_histories(),), _load_histories, _reseal_arrays),
        Target("pages", (_pages(),), _load_pages, _reseal_arrays),
        Target("semantic_ids", (_semantic_ids(),), _load_semantic_ids, _reseal_ids),
        Target("checkpoint", (_checkpoint(),), _load_checkpoint, _reseal_checkpoint),
        Target("stage", (_stage(),), _load_stage, _reseal_stage),
        Target("recipe", (_recipe(),), _load_recipe),
        Target("report", (_report(),), _load_report),
        Target("published", _published(), _load_published),
        Target("precomputed", _precomputed(), _load_precomputed),
        Target(
            "metrics", (Seed({"metrics.jsonl": b'{"step": 1, "loss": 2.0}\n' * 3}),), _load_rows
        ),
        Target("requests", (_requests(),), _load_requests),
        Target("unpack", _archives(), _unpack),
    ]


@functools.cache
def targets() -> dict[str, Target]:
    """All of them by name."""
    return {target.name: target for target in (*reader_targets(), *loader_targets())}


def damaged(target: Target, seed: Seed, dice: random.Random) -> Seed:
    """A seed with damaged files, and sometimes a damaged flag."""
    if dice.random() < 0.03:
        files = random_files(seed.files, dice)
    else:
        files = mutate(seed.files, dice)
    if target.reseal and dice.random() < 0.8:
        # Files that cannot be parsed keep the old checksums.
        with unparsable():
            target.reseal(files)
    flags = dict(seed.flags)
    texts = [name for name, value in flags.items() if isinstance(value, str)]
    if texts and dice.random() < 0.03:
        flags[dice.choice(texts)] = dice.choice(HOSTILE).replace("\ud800", "")
    return Seed(files, seed.entry, flags)


class Box:
    """A folder tree in which one case after another runs, and that must stay clean."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.place = folder / "box"
        for name in ("in", "out", "tmp", "cwd"):
            (self.place / name).mkdir(parents=True)
        self.outside = _tree(self.root, skip="in")

    def run(self, target: Target, seed: Seed) -> str:
        """Runs one case.

        Returns:
            "read", or the message of the refusal.

        Raises:
            Broken: the property does not hold.
        """
        inside, out = self.place / "in", self.place / "out" / "result"
        shutil.rmtree(inside)
        inside.mkdir()
        for name, content in seed.files.items():
            path = inside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        before = os.getcwd(), tempfile.tempdir
        os.chdir(self.place / "cwd")
        tempfile.tempdir = str(self.place / "tmp")
        try:
            told = self._guarded(target, seed, inside, out)
            self._check(target, seed, inside, told == "read")
        finally:
            os.chdir(before[0])
            tempfile.tempdir = before[1]
            shutil.rmtree(self.place / "out")
            (self.place / "out").mkdir()
        return told

    def _guarded(self, target: Target, seed: Seed, inside: Path, out: Path) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                target.load(seed, inside, out)
            return "read"
        except target.refusal as error:
            _check_message(error, target.refusal)
            return str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if type(error).__module__.startswith("jaxtyping"):
                # Shapes are checked earlier under test than they are by jaxrec itself.
                return "refused by the test suite's own checks of shapes"
            raise Broken(_where(error)) from error

    def _check(self, target: Target, seed: Seed, inside: Path, was_read: bool) -> None:
        if (found := _tree(self.root, skip="in")) != self.outside:
            stray = sorted(found ^ self.outside)
            mine = {"box/out/result"} if was_read else set()
            stray = [name for name in stray if name.split("/result")[0] + "/result" not in mine]
            if stray:
                self._clean(found)
                raise Broken(f"left behind or written outside: {stray[:5]}")
        expected = {*seed.files}
        for path in inside.rglob("*"):
            if path.is_file() and path.relative_to(inside).as_posix() not in expected:
                raise Broken(f"written among the inputs: {path.name}")
        for name, content in seed.files.items():
            if (inside / name).read_bytes() != content:
                raise Broken(f"changed the input {name}")

    def _clean(self, found: set[str]) -> None:
        for name in sorted(found - self.outside, reverse=True):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _check_message(error: Exception, refusal: type[Exception]) -> None:
    text = str(error)
    if not text.strip():
        raise Broken(f"{type(error).__name__} without a message") from error
    if len(text) > LONGEST_MESSAGE:
        raise Broken(f"a message of {len(text)} characters: {text[:200]}...") from error
    if "Traceback (most recent" in text or 'File "' in text:
        raise Broken(f"a traceback in the message: {text[:300]}") from error
    frames = traceback.extract_tb(error.__traceback__)
    is_plain = type(error) is ValueError or isinstance(error, UnicodeError | json.JSONDecodeError)
    # A library's ValueError knows neither the file nor what to do.
    if is_plain and not frames[-1].filename.startswith(_HOME):
        raise Broken("a library's own: " + _where(error)) from error


def _where(error: BaseException) -> str:
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if each.filename.startswith(_HOME)
    ]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {str(error)[:300]}"


def _tree(root: Path, skip: str) -> set[str]:
    found, waiting = set(), [(str(root), "")]
    while waiting:
        folder, prefix = waiting.pop()
        for entry in os.scandir(folder):
            name = prefix + entry.name
            if name == f"box/{skip}":
                continue
            found.add(name)
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, name + "/"))
    return found


# Readers


def _import(name: str, seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.data.dataset import read_dataset, titles
    from jaxrec.data.histories import check_rows, prepare

    flags = {
        key: str(inside / value[1:]) if isinstance(value, str) and value[:1] == "@" else value
        for key, value in seed.flags.items()
    }
    source = reader(name)(path=str(inside / seed.entry) if seed.entry else str(inside), **flags)
    source.fingerprint()
    source.write(out)
    # What a reader wrote must be usable: whatever fails from here on is the reader's fault.
    try:
        dataset = read_dataset(out)
        if sorted(os.listdir(out)) != ["dataset.json", "interactions.parquet", "items.parquet"]:
            raise Broken(f"the dataset folder holds {sorted(os.listdir(out))}")
        histories = prepare(dataset)
        check_rows(histories)
        if len(titles(dataset, histories.items)) != histories.num_items:
            raise Broken("titles are missing")
    except ValueError as error:
        # Damage under fitting checksums may lie in a column that nothing had to read before.
        is_late = name == "canonical" and "cannot be read" in str(error)
        if not is_late and "belongs to a history" not in str(error):
            raise Broken(f"accepted, and then refused: {_where(error)}") from error


def _reseal_dataset(files: Files) -> None:
    import polars as pl

    content = json.loads(files["dataset.json"])
    for name in ("interactions.parquet", "items.parquet"):
        content["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
    with unparsable():
        log = pl.read_parquet(io.BytesIO(files["interactions.parquet"]))
        items = pl.read_parquet(io.BytesIO(files["items.parquet"]))
        content["counts"] = {
            "interactions": log.height,
            "users": log["user"].n_unique(),
            "items": items.height,
        }
    files["dataset.json"] = json.dumps(content).encode()


# Loaders


def _saved(save: Callable[[Path], Any]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "saved"
        save(place)
        return {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }


def _some_histories() -> Any:
    from jaxrec.data.histories import Histories

    return Histories(
        offsets=np.array([0, 2, 5]),
        item=np.array([0, 1, 2, 1, 0], np.int32),
        time=np.array([1, 2, 1, 1, 3]),
        action=np.zeros(5, np.int32),
        users=np.array(["u1", "u2"]),
        items=np.array(["a", "b", "c"]),
    )


def _histories() -> Seed:
    return Seed(_saved(_some_histories().save))


def _load_histories(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.data.histories import Histories, check_rows

    check_rows(Histories.load(inside))


def _pages() -> Seed:
    from jaxrec.data.pages import Pages

    pages = Pages(
        offsets=np.array([0, 2, 3]),
        item=np.array([0, 1, 2], np.int32),
        grade=np.array([0, 1, 0], np.int32),
        position=np.array([0, 1, 0], np.int32),
        value=np.array([0, 1, np.nan], np.float32),
        user=np.array([0, -1], np.int32),
        time=np.array([3, 4]),
        history_end=np.array([2, 0]),
        grades=("exposed", "click"),
        rule="a page is a request",
    )
    return Seed(_saved(pages.save))


def _load_pages(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.data.pages import Pages, check_pages

    check_pages(Pages.load(inside), _some_histories())


def _reseal_arrays(files: Files) -> None:
    content = json.loads(files["manifest.json"])
    content["sha256"] = {
        name.removesuffix(".npy"): hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name.endswith(".npy")
    }
    files["manifest.json"] = json.dumps(content).encode()


def _ids() -> Any:
    from jaxrec.tokenization.semantic_ids import SemanticIds
    from jaxrec.types import TokenSpace

    return SemanticIds(
        codes=np.array([[0, 1], [1, 0], [2, 2]], np.int32),
        space=TokenSpace((3, 3)),
        items=np.array(["a", "b", "c"]),
        quantizer="ResidualKMeans",
        state={"codebooks": np.ones((2, 3, 2), np.float32)},
    )


def _semantic_ids() -> Seed:
    return Seed(_saved(_ids().save))


def _load_semantic_ids(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.tokenization.semantic_ids import SemanticIds

    SemanticIds.load(inside).as_text("a")


def _reseal_ids(files: Files) -> None:
    content = json.loads(files["semantic_ids.json"])
    content["sha256"] = hashlib.sha256(files["semantic_ids.npz"]).hexdigest()
    files["semantic_ids.json"] = json.dumps(content).encode()


_STATE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "step": np.int32(7)}


def _checkpoint() -> Seed:
    import jax.numpy as jnp

    from jaxrec.checkpoint import Checkpoints

    def save(folder: Path) -> None:
        state = {"params": {"w": jnp.asarray(_STATE["params"]["w"])}, "step": jnp.int32(7)}
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(7, state, data={"batches": 3}, manifest={"space_id": "x"})

    return Seed(_saved(save))


def _load_checkpoint(seed: Seed, inside: Path, out: Path) -> None:
    import jax

    from jaxrec.checkpoint import Checkpoints

    template = {
        "params": {"w": jax.ShapeDtypeStruct((2, 3), np.float32)},
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    with Checkpoints(inside) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            raise _refused("no checkpoint")
        checkpoints.manifest(latest)
        checkpoints.restore(latest, template)


def _refused(text: str) -> ValueError:
    from jaxrec.checkpoint import CheckpointError

    return CheckpointError(text)


def _reseal_checkpoint(files: Files) -> None:
    name = "000000007/checkpoint.json"
    record = json.loads(files[name])
    record.pop("checksum", None)
    record["files"] = {
        each.removeprefix("000000007/"): [len(data), zlib.crc32(data)]
        for each, data in files.items()
        if each != name
    }
    seal = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    files[name] = json.dumps({**record, "checksum": seal}).encode()


def _stage() -> Seed:
    from jaxrec.files import folder_hash, write_json

    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "vectors.npy").write_bytes(b"numbers")
        content = folder_hash(folder)
        write_json(folder / "stage.json", {"stage": "x", "key": "k", "content": content})

    return Seed(_saved(save))


def _load_stage(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.pipeline.cache import open_artefact

    open_artefact(inside)


def _reseal_stage(files: Files) -> None:
    from jaxrec.files import folder_hash

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if name != "stage.json":
                (Path(folder) / name).write_bytes(data)
        content = json.loads(files["stage.json"])
        content["content"] = folder_hash(folder)
        files["stage.json"] = json.dumps(content).encode()


def _recipe() -> Seed:
    from jaxrec.recipe import load_recipe, to_json

    root = Path(__file__).resolve().parents[2]
    recipe = to_json(load_recipe(root / "configs/synthetic.py"))
    return Seed({"recipe.json": json.dumps(recipe).encode()})


def _load_recipe(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.recipe import load_recipe, to_json

    to_json(load_recipe(inside / "recipe.json"))


def _report() -> Seed:
    from jaxrec.evaluation.protocol import Protocol
    from jaxrec.evaluation.ranks import CaseRanks, write_ranks
    from jaxrec.evaluation.report import compare_ranks, row_from_ranks, write_report
    from jaxrec.files import write_json

    protocol = Protocol(dataset="toy", num_users=8, num_items=9, num_events=99, num_cases=8)
    found = {"popularity": np.array([1, 0, 12, 0] * 2), "generator": np.array([1, 1, 2, 0] * 2)}

    def save(folder: Path) -> None:
        folder.mkdir()
        rows = [
            row_from_ranks(name, ranks, protocol, seen_masked=True, seconds=0.5, draws=9)
            for name, ranks in found.items()
        ]
        pair = compare_ranks(
            "generator", found["generator"], "popularity", found["popularity"],
            seen_masked=True, seed=0, draws=9,
        )  # fmt: skip
        ranks = CaseRanks(
            "same",
            np.arange(8, dtype=np.int32),
            tuple((name, "item", True) for name in found),
            np.stack(list(found.values())).astype(np.int32),
        )
        file = write_ranks(folder, ranks).name
        kept = {"file": file, "cases": ranks.cases, "fingerprint": ranks.fingerprint}
        write_report(folder, protocol, rows, {"ranks": kept}, comparisons=[pair])
        write_json(folder / "recipe.json", {"class": "recipe:Recipe", "seed": 0})

    return Seed(_saved(save))


def _load_report(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.evaluation.report import read_report, text_table
    from jaxrec.pipeline.compare import open_result

    open_result(inside, "x")
    text_table(read_report(inside))


def _published() -> tuple[Seed, ...]:
    index = {str(n): [f"<a_{n}>", "<b_7>", "<c_2>"] for n in range(3)}
    texts = {str(n): f"<a_{n}><b_7>" for n in range(3)}
    sids = {str(n): {"sid": f"SID_00{n}_003", "title": "x"} for n in range(3)}
    return tuple(Seed({"i.json": json.dumps(each).encode()}) for each in (index, texts, sids))


def _load_published(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.tokenization.published import PublishedIds

    PublishedIds(str(inside / "i.json"))(items=["0", "1", "2"])


def _precomputed() -> tuple[Seed, ...]:
    from safetensors.numpy import save

    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    buffer = io.BytesIO()
    np.save(buffer, matrix)
    return (
        Seed({"v.npy": buffer.getvalue()}),
        Seed(
            {"v.npy": buffer.getvalue(), "ids.json": b'["a", "b", "c"]'}, flags={"ids": "@ids.json"}
        ),
        Seed(
            {"v.safetensors": save({"x": matrix}), "i.txt": b"a\nb\nc\n"}, flags={"ids": "@i.txt"}
        ),
    )


def _load_precomputed(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.representation.precomputed import Precomputed

    flags = {key: str(inside / str(value)[1:]) for key, value in seed.flags.items()}
    path = inside / ("v.safetensors" if "i.txt" in str(flags) else "v.npy")
    source = Precomputed(str(path), **flags)
    source.fingerprint()
    source.encode([], table={"item": ["a", "b", "c"]}, fit_mask=np.ones(3, bool), seed=0)


def _load_rows(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.tracking import JsonLines

    JsonLines(inside / "metrics.jsonl").rows()


def _requests() -> Seed:
    lines = [{"history": ["a", "b"], "count": 3}, {"user": "u1"}, {"history": []}]
    return Seed({"r.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()})


def _load_requests(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.pipeline.requests import numbered_lines, parse_request

    if (inside / "r.jsonl").is_file():
        with open(inside / "r.jsonl", "rb") as file:
            for number, line in numbered_lines(file):
                parse_request(line, number)


def _archives() -> tuple[Seed, ...]:
    import gzip
    import tarfile
    import zipfile

    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/log.csv", "user,item\n1,2\n" * 20)
        archive.writestr("readme.txt", "hello")
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        for name in ("data/log.csv", "readme.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"1,2\n"))
    return (
        Seed({"a.zip": packed.getvalue()}, "a.zip"),
        Seed({"a.tar.gz": tarred.getvalue()}, "a.tar.gz"),
        Seed({"a.csv.gz": gzip.compress(b"1,2\n" * 9)}, "a.csv.gz"),
    )


def _unpack(seed: Seed, inside: Path, out: Path) -> None:
    from jaxrec.data.unpack import unpack

    unpack(inside / seed.entry, out, limit=100_000)
    for path in out.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Broken(f"unpacked something that is no file: {path}")
