"""An exported run answers what the run answers, without jaxrec, for any batch and a new index."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrec.cli import main
from jaxrec.interop import exported
from jaxrec.interop.export import build_index, shape_of_export, write_index
from jaxrec.interop.exported import Exported
from jaxrec.pipeline.recommend import recommend_histories
from jaxrec.pipeline.run import open_finished

COUNT = 7


@pytest.fixture(scope="module")
def opened(finished):
    return open_finished(finished)


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "program"
    assert main(["export", str(finished), "--out", str(out), "--room", "0.5"]) == 0
    return out


def histories_of(opened, count):
    """Histories of the log, one that is longer than what is read, one nobody, one unknown item."""
    log, names = opened.data.histories, np.asarray(opened.data.histories.items)
    found = [names[log.item[a:b]].tolist() for a, b in zip(log.offsets, log.offsets[1:])][:count]
    longest = np.concatenate([names[np.asarray(log.item[: log.offsets[9]])]]).tolist()
    return [*found, [], ["no such item", names[3]], longest[: opened.recipe.evaluation.history + 9]]


def assert_same(opened, answers, histories):
    expected = recommend_histories(
        opened, [[item for item in each if item != "no such item"] for each in histories],
        count=COUNT,
    )  # fmt: skip
    for mine, theirs in zip(answers, expected, strict=True):
        assert [item for item, _ in mine] == [each.item for each in theirs.recommendations]
        scores = [each.score for each in theirs.recommendations]
        np.testing.assert_allclose([score for _, score in mine], scores, atol=1e-5)


@pytest.mark.parametrize("count", [1, 6])
def test_answers_of_any_batch_are_those_of_the_run(opened, folder, count):
    histories = histories_of(opened, count)
    assert_same(opened, Exported(folder)(histories, count=COUNT), histories)


def test_the_loader_needs_jax_and_numpy_alone(folder):
    """By its imports, and in a process that cannot import jaxrec."""
    text = (folder / "exported.py").read_text(encoding="utf-8")
    assert text == Path(exported.__file__).read_text(encoding="utf-8")
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {"json", "collections", "pathlib", "jax", "numpy"}
    code = (
        "import sys; sys.modules['jaxrec'] = None; from exported import Exported; "
        "print(Exported('.')([[]], count=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == Exported(folder)([[]], count=2)


def test_a_new_index_is_taken_between_two_requests(opened, folder, tmp_path):
    """An item more, and one gone: no new program, and the answers are of the new index."""
    run, ids = Exported(folder), opened.tokens.ids
    shape, places = shape_of_export(folder)
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    names = np.asarray(opened.data.histories.items).astype(str)
    before = run([[]], count=COUNT)[0]
    # The best answer leaves, and an item with its semantic ID comes under another name.
    best = int(np.flatnonzero(names == before[0][0])[0])
    codes = np.concatenate([ids.codes, ids.codes[best : best + 1]])
    keep = np.arange(len(codes)) != best
    order = np.zeros(len(codes))
    features = {"popularity": np.concatenate([opened.data.popularity, [0]])[keep].astype(np.int32)}
    index = build_index(
        codes[keep],
        ids.space,
        order[keep],
        features,
        np.append(names, "fresh")[keep],
        ids.space_id,
        shape=shape,
        places=places,
    )
    write_index(tmp_path / "next", index, about)
    run.swap(tmp_path / "next")
    after = run([[]], count=COUNT)[0]
    assert [item for item, _ in after] == ["fresh", *(item for item, _ in before[1:])]
    np.testing.assert_allclose([s for _, s in after], [s for _, s in before], atol=1e-5)
    run.swap(folder)
    assert run([[]], count=COUNT)[0] == before


def test_an_index_alone_by_the_program(finished, folder, tmp_path, capsys):
    out = tmp_path / "index"
    assert main(["export", str(finished), "--out", str(out), "--like", str(folder)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "index.npz"]
    run = Exported(folder)
    expected = run([[]])
    run.swap(out)
    assert run([[]]) == expected
    with pytest.raises(ValueError, match="holds an index and no program"):
        Exported(out)


def test_an_index_that_does_not_fit_is_refused(opened, folder, tmp_path):
    run = Exported(folder)
    expected = run([[]])
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    manifest = json.loads((other / "export.json").read_text(encoding="utf-8"))
    (other / "export.json").write_text(json.dumps(manifest | {"space_id": "elsewhere"}))
    with pytest.raises(ValueError, match="semantic IDs elsewhere"):
        run.swap(other)
    wider = manifest["shape"] | {"fanout": [each + 1 for each in manifest["shape"]["fanout"]]}
    (other / "export.json").write_text(json.dumps(manifest | {"shape": wider}))
    with pytest.raises(ValueError, match="--room"):
        run.swap(other)
    (other / "export.json").write_text(json.dumps(manifest))
    with np.load(other / "index.npz") as file:
        arrays = dict(file)
    np.savez(other / "index.npz", **arrays | {"array_00000": arrays["array_00000"][:-1]})
    with pytest.raises(ValueError, match="--room"):
        run.swap(other)
    assert run([[]]) == expected, "a refused index changes nothing"
    ids = opened.tokens.ids
    shape, _ = shape_of_export(folder)
    with pytest.raises(ValueError, match="no place"):
        build_index(
            ids.codes, ids.space, np.zeros(len(ids.codes)), {}, ids.codes[:, 0], ids.space_id,
            shape=shape, places=3,
        )  # fmt: skip


def test_what_cannot_be_asked_is_refused(folder):
    run = Exported(folder)
    with pytest.raises(ValueError, match="count=0: the program answers 1 to"):
        run([[]], count=0)
    run.manifest["denied"] = 5
    with pytest.raises(ValueError, match="120 items to exclude: the program takes 5"):
        run([[]], exclude=[run.items])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run"),
        (["nowhere", "--out", "x"], "nowhere is not a run"),
        (["nowhere", "--out", "x", "--room", "-1"], "must not be negative"),
        (["nowhere", "--out", "x", "--like", "nothing"], "nothing is no export"),
        (["nowhere", "--out", "."], "exists"),
    ],
)
def test_bad_calls_end_with_two_and_write_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
