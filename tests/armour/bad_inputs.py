"""The table of bad inputs: what is given, what jaxrec says, what to do. The manual prints it.

Each case makes its input in a folder of its own and gives the words of a command. In a message
`...` stands for anything: paths, counts, lists of names.
"""

# A table is read by lines, however long.
# ruff: noqa: E501

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxrec.files import folder_hash, read_json, write_json

Words = list[str]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a case is made."""

    folder: Path
    """An empty folder."""
    recipe: Path
    """A recipe that runs: small, synthetic, named `small`."""
    finished: Callable[[], Path]
    """Gives the folder of a finished run of it, a copy that may be damaged."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    name: str
    """What is wrong, as the manual says it."""
    message: str
    """What is printed; `...` is anything."""
    advice: str
    """What to do about it."""
    make: Callable[[Place], Words]
    """Makes the input and gives the command line."""
    part: str


LOG = "user_id,item_id,timestamp,rating\nu1,a,1500000000,4\nu1,b,1500000001,3\nu2,a,1500000002,5\n"
ITEMS = "item_id,title\na,Ball\nb,Cup\n"


def _import(content: str | bytes, *words: str, name: str = "log.csv", items: str = "") -> Callable:
    def make(place: Place) -> Words:
        path = place.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        more = list(words)
        if items:
            (place.folder / "items.csv").write_text(items, encoding="utf-8")
            more += ["--items", str(place.folder / "items.csv")]
        return ["data", "import", "tables", str(path), "--out", str(place.folder / "d"), *more]

    return make


def _run(
    *words: str, change: Callable[[dict], None] | None = None, raw: bytes | None = None
) -> Callable:
    """`jaxrec run` of the recipe with flags, or with a changed or damaged record of it."""

    def make(place: Place) -> Words:
        path = place.folder / "mine.json"
        content = read_json(place.recipe)
        if change is not None:
            change(content)
        path.write_bytes(json.dumps(content).encode() if raw is None else raw)
        given = [word.replace("@", str(place.folder) + "/") for word in words]
        return ["run", str(path), "--runs", str(place.folder / "runs"), *given]

    return make


def _answer(damage: Callable[[Path], object], *words: str, command: str = "recommend") -> Callable:
    """A command on a finished run that is damaged first."""

    def make(place: Place) -> Words:
        folder = place.finished()
        damage(folder)
        more = words or (("--history",) if command == "recommend" else ())
        return [command, str(folder), *more]

    return make


def _cut(name: str) -> Callable[[Path], None]:
    """Cuts a file in half; the name may be a pattern."""

    def damage(folder: Path) -> None:
        path = max(folder.glob(name))
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])

    return damage


def _flip(name: str) -> Callable[[Path], None]:
    """Changes one bit in the middle of a file."""

    def damage(folder: Path) -> None:
        path = max(folder.glob(name))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)

    return damage


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return damage


def _largest_array(folder: Path) -> None:
    newest = max((folder / "checkpoints/0-supervised/checkpoints").glob("0*"))
    path = max(newest.glob("state/**/d/*"), key=lambda each: each.stat().st_size)
    path.write_bytes(path.read_bytes()[:-7])


def _other_space(folder: Path) -> None:
    """Semantic IDs of another token space, as whole as the ones that were there."""
    from jaxrec.tokenization.semantic_ids import SemanticIds
    from jaxrec.types import TokenSpace

    tokens = folder / "artefacts/tokens"
    ids = SemanticIds.load(tokens)
    sizes = tuple(size + 1 for size in ids.space.sizes)
    space = TokenSpace(sizes, ids.space.has_extra_digit, ids.space.specials)
    dataclasses.replace(ids, space=space).save(tokens)
    _reseal(tokens)


def _reseal(folder: Path) -> None:
    manifest = read_json(folder / "stage.json")
    content = folder_hash(folder, leave_out=("stage.json",))
    write_json(folder / "stage.json", {**manifest, "content": content})


def _set(*path: str | int, value: object) -> Callable[[dict], None]:
    """Sets one field of a recipe's record."""

    def change(content: dict) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


def _vectors(matrix: np.ndarray) -> Callable:
    """A run whose item vectors come from a file."""

    def make(place: Place) -> Words:
        np.save(place.folder / "vectors.npy", matrix)
        encoder = {"class": "representation:Precomputed", "path": str(place.folder / "vectors.npy")}
        return _run(change=_set("items", "encoder", value=encoder))(place)

    return make


def _into_file(place: Place) -> Words:
    (place.folder / "runs").write_text("I am a file", encoding="utf-8")
    return _run()(place)


def _taken(place: Place) -> Words:
    (place.folder / "d").mkdir()
    (place.folder / "d/thesis.txt").write_text("precious", encoding="utf-8")
    return _import(LOG)(place)


def _changed_dataset(place: Place) -> Words:
    shutil.copytree(place.finished() / "artefacts/dataset", place.folder / "data")
    _cut("interactions.parquet")(place.folder / "data")
    words = ["data", "import", "canonical", str(place.folder / "data")]
    return [*words, "--out", str(place.folder / "d")]


def _other_recipe(place: Place) -> Words:
    folder = place.finished()
    return ["run", str(folder / "recipe.json"), "--generator.layers", "2"]


def _short_histories(place: Place) -> Words:
    from jaxrec.data.dataset import write_dataset

    log = {"user": ["u1", "u2"], "item": ["a", "b"], "timestamp": [1, 2]}
    write_dataset(
        place.folder / "d",
        log,
        {"item": ["a", "b"], "title": ["A", "B"]},
        name="t",
        source="t",
        licence="t",
    )
    source = {"class": "data:CanonicalFolder", "path": str(place.folder / "d")}
    return _run(change=_set("data", "source", value=source))(place)


def _extend(spoil: Callable[[Path, Path], object]) -> Callable:
    """`jaxrec extend` of a finished run by three items; spoils a folder that holds `new.npy`,
    `ids.txt` and no `version` yet, or the run."""

    def make(place: Place) -> Words:
        run, folder = place.finished(), place.folder
        vectors = np.load(run / "artefacts/vectors/vectors.npy")[:3]
        np.save(folder / "new.npy", vectors + np.float32(0.001))
        (folder / "ids.txt").write_text("n1\nn2\nn3\n", encoding="utf-8")
        spoil(folder, run)
        words = ["extend", str(run), "--vectors", str(folder / "new.npy")]
        return [*words, "--ids", str(folder / "ids.txt"), "--out", str(folder / "version")]

    return make


def _new_vectors(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    return _extend(lambda folder, _: np.save(
        folder / "new.npy", change(np.load(folder / "new.npy"))
    ))  # fmt: skip


def _new_ids(text: str) -> Callable:
    return _extend(lambda folder, _: (folder / "ids.txt").write_text(text, encoding="utf-8"))


def _known_ids(folder: Path, run: Path) -> None:
    known = np.load(run / "artefacts/histories/items.npy")[:2].tolist()
    (folder / "ids.txt").write_text("\n".join([*known, "n3"]), encoding="utf-8")


def _index_there(folder: Path, _: Path) -> None:
    (folder / "version").mkdir()
    (folder / "version/thesis.txt").write_text("precious", encoding="utf-8")


def _one_hole(vectors: np.ndarray) -> np.ndarray:
    vectors[1, 0] = np.nan
    return vectors


def _missing(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


_AGAIN = "Delete the folder that is named; the same `jaxrec run` makes it again."
_DATA, _RECIPE, _RUN = "logs and items", "recipes and flags", "runs and their files"
_NEW = "new items (`jaxrec extend`)"
_SAME_WAY = "Make the vectors as the run made its own, steps included."

CASES = (
    # Logs and items
    Case("missing column", "none of its columns ('who', 'item_id', 'timestamp', 'rating') has a usual name for users. Name the column with --user COLUMN.", "Name your column with `--user`, `--item` or `--time`.", _import(LOG.replace("user_id", "who")), _DATA),
    Case("a named column that is not there", "has no column 'when'; it has 'user_id', 'item_id', 'timestamp', 'rating'.", "Choose one of the columns that are listed.", _import(LOG, "--time", "when"), _DATA),
    Case("wrong type: times that are words", "a time is not a date such as ... Name its format with --time-unit", "Give `--time-unit`, `--time none`, or repair the column.", _import(LOG.replace("1500000001", "yesterday")), _DATA),
    Case("wrong type: values that are words", "cannot be read: ...column 'rating'... [\"good\"]", "Repair the cells that are shown, or leave the column out.", _import(LOG.replace(",3\n", ",good\n"), "--value", "rating"), _DATA),
    Case("mixed encodings", "its text is not UTF-8. Convert it, for example with `iconv -f LATIN1 -t UTF-8`.", "Convert the file to UTF-8.", _import(LOG.replace("u2", "ü").encode("latin-1")), _DATA),
    Case("mixed encodings in JSON lines", "cannot be read: ...", "Convert the file to UTF-8.", _import('{"user": "ü", "item": "a", "time": 1}\n'.encode("latin-1"), name="log.jsonl"), _DATA),
    Case("malformed JSON", "cannot be read: ...", "Repair the line, or export the file again.", _import('{"user": "u1", "item": "a", "time": 1}\n{"user": \n', name="log.jsonl"), _DATA),
    Case("empty file", "log.csv is empty (0 bytes). Was a download or an export cut off?", "Fetch or export it again.", _import(""), _DATA),
    Case("a header and no rows", "the log is empty: there is not one interaction.", "Check that this is the right file.", _import("user_id,item_id,timestamp\n"), _DATA),
    Case("an empty id", "1 row(s) have no 'item'. Drop or fill them first.", "Drop such rows, or fill them.", _import(LOG.replace("u1,b", "u1,")), _DATA),
    Case("a file that is not there", "lo.csv does not exist. Perhaps you meant ...log.csv.", "Check the path.", lambda place: [*_import(LOG)(place)[:3], str(place.folder / "lo.csv"), "--out", str(place.folder / "d")], _DATA),
    Case("a folder in the place of a file", "is a folder; name the file inside it.", "Name the file.", lambda place: ["data", "import", "tables", str(place.folder), "--out", str(place.folder / "d")], _DATA),
    Case("a table of unknown kind", "the name does not say what kind of table this is. Use one of .csv, ...", "Rename the file, or convert it.", _import(LOG, name="log.xlsx"), _DATA),
    Case("truncated .gz", "log.csv.gz... cannot be read: ...", "Fetch or export it again.", _import(gzip.compress(LOG.encode() * 99)[:-20], name="log.csv.gz"), _DATA),
    Case("truncated Parquet", "log.parquet cannot be read: ...", "Fetch or export it again.", _import(b"PAR1" + bytes(40), name="log.parquet"), _DATA),
    Case("unknown item: one of the log that the table of items lacks", "1 item(s) of the log are not in items.parquet, for example 'b'. Add them there (a row with the id is enough), or drop their interactions.", "Add a row to the table of items, or leave out `--all-items`.", _import(LOG, "--all-items", items="item_id,title\na,Ball\n"), _DATA),
    Case("duplicate item ids", "1 item id(s) occur more than once, for example 'a'. Keep one row per item.", "Keep one row per item.", _import(LOG, items=ITEMS + "a,Again\n"), _DATA),
    Case("negative times", "the earliest timestamp is -5; times are seconds from 0 on.", "Shift the times, or drop those rows.", _import(LOG.replace("1500000001", "-5")), _DATA),
    Case("times in the far future", "the latest timestamp is 1500000000000, and times are Unix seconds up to 4102444800 (the year 2100). If these are milliseconds, divide by 1000 (--time-unit ms).", "Name the right unit with `--time-unit`.", _import(LOG.replace("1500000001", "1500000000000"), "--time-unit", "s"), _DATA),
    Case("a value that is not finite", "1 row(s) have a 'value' that is not finite (NaN or infinite). Leave such cells empty, or drop the rows.", "Leave such cells empty.", _import(LOG.replace(",3\n", ",NaN\n"), "--value", "rating"), _DATA),
    Case("a folder that holds something else", "d is there and is not a dataset folder; it is left as it is. Choose another --out.", "Choose another `--out`.", _taken, _DATA),
    Case("a misspelt format", "'sequence' is neither a format (...) nor a file. Perhaps you meant 'sequences'.", "Use one of the formats that are listed.", lambda place: ["data", "import", "sequence", "x", "--out", str(place.folder / "d")], _DATA),
    Case("a dataset folder that was changed or cut off", "interactions.parquet is not the file that dataset.json describes (its SHA-256 differs): it was changed or truncated.", "Import the log again.", _changed_dataset, _DATA),
    # Recipes and flags
    Case("a recipe that is not there", "there is no recipe at ...nowhere.py.", "Check the path.", lambda place: ["run", str(place.folder / "nowhere.py")], _RECIPE),
    Case("a misspelt flag", "--generator.layer... --generator.layers", "Use the flag that is proposed.", _run("--generator.layer", "6"), _RECIPE),
    Case("a flag with a value of another type", "--seed... invalid", "Give a value of the type that is named.", _run("--seed", "many"), _RECIPE),
    Case("NaN in a field", "dropout=nan must lie between 0 and 0.99.", "Give a number.", _run("--generator.dropout", "nan"), _RECIPE),
    Case("NaN in a recipe.json", "stages.0.optimizer.learning_rate is nan; the numbers of a recipe are finite.", "Give a number.", _run(change=_set("stages", 0, "optimizer", "learning_rate", value=float("nan"))), _RECIPE),
    Case("a recipe.json that is cut off", "mine.json is not readable as JSON", "Use the recipe's Python file, or another copy.", _run(raw=b'{"class": "recipe:Recipe", "name'), _RECIPE),
    Case("a recipe.json that is something else", "mine.json is no recipe: it is damaged, or of another program.", "Name the recipe.json of a run.", _run(raw=b"[1, 2]"), _RECIPE),
    Case("a component that does not exist", "'backbones:Decodr' names no component: expected wing:Class", "Correct the name, or install the package that declares it.", _run(change=_set("generator", "class", value="backbones:Decodr")), _RECIPE),
    Case("a class that is code", "'os:system' names no component: expected wing:Class", "Do not trust where the file came from.", _run(change=_set("generator", value={"class": "os:system", "command": "true"})), _RECIPE),
    Case("a field of another type in a recipe.json", "recipe:Recipe: seed is 'x', which is no int.", "Correct the field.", _run(change=_set("seed", value="x")), _RECIPE),
    Case("a name that leaves the runs folder", "name '../../evil' cannot be a folder: use letters, digits, '.', '_' and '-'.", "Choose another name.", _run(change=_set("name", value="../../evil")), _RECIPE),
    Case("an impossible mesh", "mesh {'data': 3, ...} does not fit 8 device(s): the sizes must multiply to 8.", "Change `--mesh`, or leave one axis at -1.", _run("--mesh.data", "3"), _RECIPE),
    Case("rows that do not divide over the devices", "evaluation.rows gives 3 row(s) a micro-batch, which do not divide over data x fsdp = 8 device(s); use a multiple of 8.", "Use a multiple.", _run("--evaluation.rows", "3"), _RECIPE),
    Case("a cutoff beyond the lists", "evaluation.cutoffs asks for the first 99 places, and decoding.k=20 gives shorter lists; raise decoding.k or lower the cutoffs.", "Raise `--decoding.k`, or lower the cutoffs.", _run("--evaluation.cutoffs", "5", "99"), _RECIPE),
    Case("a cutoff of nothing", "evaluation.cutoffs must be positive numbers", "Give numbers from 1 on.", _run("--evaluation.cutoffs", "0"), _RECIPE),
    Case("a split without test cases", "the split leave-one-out leaves no test case; the longest history has 1 event(s).", "Give users longer histories, or choose another split.", _short_histories, _RECIPE),
    Case("filters that leave nothing", "no event is left after min_user=9999 and min_item=0: no group of users and items is that dense. Lower the limits.", "Lower the limits.", _run("--data.min-user", "9999"), _RECIPE),
    Case("a codebook larger than the catalogue", "tokenizer.quantizer.codes asks for 5000 codes of a level, and the catalogue has 120 items; use at most 120, and better far fewer.", "Ask for fewer codes.", _run("--tokenizer.quantizer.codes", "5000"), _RECIPE),
    Case("vectors that are not finite", "vectors.npy has non-finite numbers in 1 row(s), first in row 7; repair the file.", "Repair the file of vectors.", _vectors(np.where(np.arange(120)[:, None] == 7, np.nan, np.ones((120, 4)))), _RECIPE),
    Case("vectors of another catalogue", "vectors.npy has 119 rows (after skip_rows=0), but the catalogue has 120 items; give `ids` to match rows by item id.", "Give `ids`.", _vectors(np.ones((119, 4))), _RECIPE),
    # Runs
    Case("--runs that is a file", "runs is a file; --runs names the folder that run folders live in.", "Choose another folder with `--runs`.", _into_file, _RUN),
    Case("the run folder of another recipe", "holds the run of another recipe (generator.layers is 1 there and 2 here). Give this run another name with --name, or delete the folder.", "Give `--name`.", _other_recipe, _RUN),
    Case("a folder that is no run", "is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`.", "Name a folder below `runs/`.", lambda place: ["recommend", str(place.folder), "--history"], _RUN),
    Case("a run that is not trained yet", "is not trained yet; run `jaxrec run ...` to the end.", "Run the command that is named.", _answer(_missing("checkpoints/0-supervised/finished.json")), _RUN),
    Case("an unknown user", "the log does not know ...nobody; it knows for example ...", "Use an id of the log, or `--history`.", _answer(lambda folder: None, "--user", "nobody"), _RUN),
    Case("an unknown item in a request", "the catalogue has none of the items nothing; it has for example ... Item ids are those of the log.", "Use ids of the log.", _answer(lambda folder: None, "--history", "nothing"), _RUN),
    Case("a damaged recipe.json", "recipe.json is not readable as JSON", _AGAIN, _answer(_cut("recipe.json")), _RUN),
    Case("a damaged dataset", "dataset does not hold what was published: a file is missing, truncated or changed.", _AGAIN, _answer(_cut("artefacts/dataset/items.parquet")), _RUN),
    Case("damaged histories", "histories does not hold what was published: a file is missing, truncated or changed.", _AGAIN, _answer(_cut("artefacts/histories/item.npy")), _RUN),
    Case("damaged vectors", "vectors does not hold what was published: a file is missing, truncated or changed.", _AGAIN, _answer(_flip("artefacts/vectors/vectors.npy")), _RUN),
    Case("damaged semantic IDs", "tokens does not hold what was published: a file is missing, truncated or changed.", _AGAIN, _answer(_flip("artefacts/tokens/semantic_ids.npz")), _RUN),
    Case("a damaged manifest of semantic IDs", "tokens does not hold what was published", _AGAIN, _answer(_cut("artefacts/tokens/semantic_ids.json")), _RUN),
    Case("a damaged stage.json", "stage.json is not readable as JSON", _AGAIN, _answer(_cut("artefacts/tokens/stage.json")), _RUN),
    Case("a checkpoint of another SID space", "holds a run with ...space_id", "Use the semantic IDs that the run was trained with.", _answer(_other_space), _RUN),
    Case("a checkpoint that is cut off", "checkpoint ... is damaged: ... is truncated, ... Delete that folder", "Delete that checkpoint; the run goes on from the one before.", _answer(_largest_array), _RUN),
    Case("a checkpoint's damaged record", "checkpoint ... is damaged: checkpoint.json is corrupted", "Delete that checkpoint; the run goes on from the one before.", _answer(_flip("checkpoints/0-supervised/checkpoints/*/checkpoint.json")), _RUN),
    Case("a damaged finished.json", "finished.json is damaged: it is truncated or was edited. Delete that file; `jaxrec run` on the run's recipe.json writes it again.", "Delete that file; `jaxrec run` writes it again.", _answer(_cut("checkpoints/0-supervised/finished.json")), _RUN),
    Case("a finished.json that is something else", "finished.json is damaged: it is truncated or was edited.", "Delete that file; `jaxrec run` writes it again.", _answer(_write("checkpoints/0-supervised/finished.json", b"[]")), _RUN),
    Case("a damaged report", "report.json is not readable as JSON", "`jaxrec evaluate` writes it again.", lambda place: ["compare", str(place.finished()), _answer(_cut("report.json"))(Place(place.folder / "2", place.recipe, place.finished))[1]], _RUN),
    # New items
    Case("vectors of another width", "new.npy has vectors of width 3, and those of ... have 32; make them with its representation (...).", _SAME_WAY, _new_vectors(lambda vectors: vectors[:, :3]), _NEW),
    Case("new vectors that are not finite", "new.npy has non-finite numbers in 1 row(s), first in row 1; repair the file.", "Repair those rows.", _new_vectors(_one_hole), _NEW),
    Case("more vectors than ids", "ids must name each of the 3 rows of ...new.npy once, got 2 ids", "Give an id for every row.", _new_ids("n1\nn2\n"), _NEW),
    Case("more ids than vectors", "ids must name each of the 3 rows of ...new.npy once, got 4 ids", "Give a row for every id.", _new_ids("n1\nn2\nn3\nn4\n"), _NEW),
    Case("an id twice", "ids must name each of the 3 rows of ...new.npy once, got 3 ids, 2 of them different", "Name every new item once.", _new_ids("n1\nn2\nn2\n"), _NEW),
    Case("a line without an id", "ids.txt must hold one item id a line, and line 2 is empty.", "Write one id a line.", _new_ids("n1\n\nn3\n"), _NEW),
    Case("ids that the index has", "2 of 3 items are in the index already, among them ...; leave them out", "Leave them out.", _extend(_known_ids), _NEW),
    Case("no file of vectors", "there is no file ...new.npy", "Check the path.", _extend(lambda folder, _: (folder / "new.npy").unlink()), _NEW),
    Case("a RUN that is no run", "is not a run: it has no recipe.json. Runs are made by `jaxrec run RECIPE`.", "Name a folder below `runs/`.", _extend(lambda _, run: shutil.rmtree(run)), _NEW),
    Case("a run without semantic IDs", "tokens is not the output of a stage: stage.json is missing. Run `jaxrec run` on the run's recipe to make it.", "Run the command that is named.", _extend(lambda _, run: shutil.rmtree(run / "artefacts/tokens")), _NEW),
    Case("an --out that is there", "version exists; name a folder that does not", "Choose another `--out`.", _extend(_index_there), _NEW),
)  # fmt: skip


def table() -> str:
    """The cases as Markdown tables, one a part."""
    lines = []
    for part in (_DATA, _RECIPE, _RUN, _NEW):
        lines += [
            f"### {part[0].upper()}{part[1:]}",
            "",
            "| given | said | do |",
            "| --- | --- | --- |",
        ]
        for case in CASES:
            if case.part == part:
                said = case.message.replace("|", "\\|")
                lines.append(f"| {case.name} | {said} | {case.advice} |")
        lines.append("")
    return "\n".join(lines)
