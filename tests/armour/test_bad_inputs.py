"""Every kind of bad input ends in one clear message and exit code 2, before any long work."""

from __future__ import annotations

import re
import shutil

import pytest
from bad_inputs import CASES, Place, table

from jaxrec.cli import main
from jaxrec.files import file_hash, write_json
from jaxrec.pipeline.cache import open_artefact
from jaxrec.recipe import to_json


@pytest.fixture
def place(small, finished, tmp_path, tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "small.json"
    write_json(recipe, to_json(small))
    copies = tmp_path / "copies"

    def copy():
        target = copies / str(len(list(copies.glob("*")))) / "small"
        shutil.copytree(finished, target)
        return target

    return Place(tmp_path, recipe, copy)


@pytest.fixture
def no_work(monkeypatch):
    """Training, decoding and judging fail loudly: bad input is found before them."""

    def fail(*_, **__):
        raise AssertionError("long work began")

    monkeypatch.setattr("jaxrec.training.loop.make_train_step", fail)
    monkeypatch.setattr("jaxrec.training.ranking.Ranker.__call__", fail)
    monkeypatch.setattr("jaxrec.pipeline.run.judge", fail)


def run(words, capsys):
    """Exit code and what stood on stderr."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().err


def says(text, message):
    """Whether a text holds the parts of a message in order; line ends and frames do not count."""
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    parts = [" ".join(part.split()) for part in message.split("...")]
    return re.search(".*?".join(map(re.escape, parts)), plain) is not None


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_is_one_clear_error(case, place, no_work, capsys):
    words = case.make(place)
    before = tree(place.folder)
    code, told = run(words, capsys)
    assert says(told, case.message), told
    assert code == 2
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if line.startswith("error: ")]) <= 1
    after = tree(place.folder)
    assert {name: after.get(name) for name in before} == before
    check_new_files(place.folder, set(after) - set(before))


def check_new_files(folder, names):
    """What a refused command may leave: whole outputs of stages that were finished before."""
    for name in names:
        assert ".tmp-" not in name
        if "/artefacts/" in name or "/.cache/" in name:
            parts = name.split("/")
            at = parts.index("artefacts" if "artefacts" in parts else ".cache")
            open_artefact(folder.joinpath(*parts[: at + 2]))
        else:
            assert name.startswith("runs/")
            assert name.rpartition("/")[2] == "recipe.json"


def test_the_manual_has_the_table(root):
    text = (root / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert table().strip() in text, (
        "docs/troubleshooting.md is stale: python tests/armour/manual.py"
    )
