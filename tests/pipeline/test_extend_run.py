"""`jaxrec extend`: a run's index with new items, from a file of vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrec.commands.overrides import UsageError
from jaxrec.commands.tokenize_extend import main
from jaxrec.files import read_json, write_json
from jaxrec.pipeline.extend import check_agreement, extend_run, read_items
from jaxrec.pipeline.run import run
from jaxrec.tokenization import SemanticIds
from jaxrec.tokenization.extend import compare_versions, lineage
from jaxrec.types import TokenSpace


@pytest.fixture(scope="module")
def tokenized(small, tmp_path_factory):
    """The folder of a run that went as far as semantic IDs."""
    return run(small, runs=tmp_path_factory.mktemp("runs"), last="tokens")


@pytest.fixture
def files(tokenized, tmp_path):
    """Five new items: the vectors of five old ones, moved a little."""
    vectors = np.load(tokenized / "artefacts/vectors/vectors.npy")[:5]
    np.save(tmp_path / "new.npy", vectors + 0.001)
    (tmp_path / "ids.txt").write_text("n1\nn2\nn 3\nn4\nn5\n", encoding="utf-8")
    return tmp_path


def words(run, files, *more, out="version"):
    given = ["--vectors", files / "new.npy", "--ids", files / "ids.txt", "--out", files / out]
    return list(map(str, [run, *given, *more]))


def test_a_version_and_one_that_follows_it(tokenized, files, capsys):
    assert main(words(tokenized, files)) == 0
    told = capsys.readouterr().out
    assert "5 new items beside 120" in told
    own = SemanticIds.load(tokenized / "artefacts/tokens")
    first = SemanticIds.load(files / "version")
    changes = compare_versions(own, first)
    assert changes["added"] == ["n1", "n2", "n 3", "n4", "n5"]
    assert changes["moved"] == changes["removed"] == []
    assert changes["same_space"]
    assert changes["is_child"]
    # So near to their models the new items have their codes, and other digits.
    np.testing.assert_array_equal(first.codes[120:, :-1], own.codes[:5, :-1])
    report, drift = (
        read_json(files / "version" / f"{name}.json") for name in ("extended", "drift")
    )
    assert report["n_old_ids_shared"] == 5
    assert report["parent"] == own.assignment_id
    assert (drift["n_old"], drift["n_new"]) == (120, 5)
    assert drift["collisions"]["new_on_old"] == 1.0
    assert sorted(path.name for path in (files / "version").iterdir()) == [
        "drift.json",
        "extended.json",
        "semantic_ids.json",
        "semantic_ids.npz",
    ]
    (files / "ids.txt").write_text("m1\nm2\nm3\nm4\nm5", encoding="utf-8")
    np.save(files / "new.npy", np.load(files / "new.npy") * 50)
    assert main(words(tokenized, files, "--index", files / "version", out="next")) == 0
    told = capsys.readouterr().out
    assert "level by level: 100.0%, 100.0%" in told
    assert "fit them again with the new items in" in told
    chain = lineage(files / "next", [files / "version", tokenized / "artefacts/tokens"])
    assert [ids.num_items for _, ids in chain] == [120, 125, 130]
    assert read_json(files / "next/drift.json")["levels"][0]["beyond"] == 1.0


def test_the_command_needs_a_run_and_a_new_folder(tokenized, files):
    with pytest.raises(UsageError, match="needs a run"):
        main([])
    (files / "version").mkdir()
    with pytest.raises(UsageError, match="exists; name a folder that does not"):
        main(words(tokenized, files))


def test_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--vectors", "--ids", "--out", "--index"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, r: (f / "ids.txt").unlink(), "there is no file of ids"),
        (lambda f, r: (f / "ids.txt").write_text("a\n\nb\nc\nd\n"), "line 2 is empty"),
        (lambda f, r: (f / "ids.txt").write_text(""), "and it is empty"),
        (lambda f, r: (f / "ids.txt").write_bytes(b"\xff"), "is not UTF-8"),
        (lambda f, r: (f / "ids.txt").write_text("a\nb\n"), "each of the 5 rows"),
        (lambda f, r: (f / "ids.txt").write_text("a\na\nb\nc\nd\n"), "4 of them different"),
        (lambda f, r: (f / "new.npy").unlink(), "there is no file .*new.npy"),
        (lambda f, r: (f / "new.npy").write_bytes(b"x"), "cannot be read as a matrix"),
        (lambda f, r: np.save(f / "new.npy", np.ones((5, 3))), "width 3, and those of .* have 32"),
        (lambda f, r: np.save(f / "new.npy", np.full((5, 32), np.nan)), "non-finite numbers in 5"),
        (lambda f, r: (f / "ids.txt").write_text(known_items(r)), "in the index already"),
        (lambda f, r: (r / "recipe.json").unlink(), "is not a run"),
        (lambda f, r: shutil.rmtree(r / "artefacts/tokens"), "is not the output of a stage"),
        (
            lambda f, r: (r / "artefacts/vectors/vectors.npy").unlink(),
            "not hold what was published",
        ),
        (
            lambda f, r: edit(r, {"class": "tokenization:ItemIds"}),
            "IDs of .* come from ItemIds, which",
        ),
        (lambda f, r: edit_quantizer(r, levels=9), "lacks codebook_"),
    ],
)
def test_bad_input_leaves_nothing(tokenized, files, spoil, message):
    copy = files / "run"
    shutil.copytree(tokenized, copy)
    spoil(files, copy)
    with pytest.raises(ValueError, match=message):
        main(words(copy, files))
    assert not (files / "version").exists()


def known_items(folder):
    items = SemanticIds.load(folder / "artefacts/tokens").items[:2].tolist()
    return "\n".join(["a", *items, "b", "c"])


def edit(folder, tokenizer):
    recipe = json.loads((folder / "recipe.json").read_text())
    write_json(folder / "recipe.json", recipe | {"tokenizer": tokenizer})


def edit_quantizer(folder, **fields):
    tokenizer = json.loads((folder / "recipe.json").read_text())["tokenizer"]
    edit(folder, tokenizer | {"quantizer": tokenizer["quantizer"] | fields})


def test_settings_that_encode_otherwise_are_found():
    codes = np.random.default_rng(0).integers(0, 8, (400, 2))
    ids = SemanticIds(codes, TokenSpace((8, 8)), np.arange(400).astype(str), "Any", {})
    now = codes.copy()
    now[:4, 1] = (now[:4, 1] + 1) % 8
    check_agreement(now, ids, [], Path("a"))
    now[4, 0] = (now[4, 0] + 1) % 8
    with pytest.raises(ValueError, match=r"a/recipe\.json gives 1% of the old items other codes"):
        check_agreement(now, ids, [], Path("a"))
    check_agreement(now, ids, [3, 4], Path("a"))
    check_agreement(now, ids, list(range(400)), Path("a"))


def test_an_index_of_another_space_is_refused(tokenized, files):
    other = SemanticIds(np.array([[0]]), TokenSpace((2,)), np.array(["a"]), "Other", {})
    other.save(files / "other")
    items = read_items(files / "ids.txt")
    with pytest.raises(ValueError, match="is no version of the index of"):
        extend_run(tokenized, files / "new.npy", items, index=files / "other")
