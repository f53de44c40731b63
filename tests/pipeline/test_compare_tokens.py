"""Tokenizers side by side, from folders and recipes to table, page and JSON; what is refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from jaxrec.commands.tokenize_compare import main
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.pipeline import categories as categories_module
from jaxrec.pipeline.compare_tokens import compare_tokens, gather_runs, open_tokens
from jaxrec.pipeline.compare_tokens_examples import (
    collision_groups,
    example_groups,
    hot_spots,
)
from jaxrec.pipeline.compare_tokens_measures import MEASURES, measure_rows
from jaxrec.pipeline.compare_tokens_page import CAUTION, HEALTHY, render_tokens, tokens_text
from jaxrec.pipeline.run import run
from jaxrec.pipeline.stages import training_sequences
from jaxrec.recipe import replace
from jaxrec.tokenization import ItemIds, PublishedIds, ResidualKMeans, Tokenizer, write_index
from jaxrec.tokenization.quality import quality_report
from jaxrec.tokenization.quality_behaviour import successive_pairs

CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 1], [2, 0]])
TITLES = [f"item {row}" for row in range(8)]
POPULARITY = np.array([1, 5, 2, 9, 3, 9, 0, 4])


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """Runs of one world as far as their tokens: two fitted, one published, one of other items."""
    runs = tmp_path_factory.mktemp("runs")

    def made(name, **fields):
        recipe = replace(small, "name", name)
        for field, value in fields.items():
            recipe = replace(recipe, field.replace("__", "."), value)
        return run(recipe, runs=runs, last="tokens")

    wide = made("wide", tokenizer=Tokenizer(ResidualKMeans(levels=2, codes=16)))
    deep = made("deep", tokenizer=Tokenizer(ResidualKMeans(levels=3, codes=4)))
    index = runs / "index.json"
    write_index(open_tokens(wide, "wide").tokens.ids, index, extra_digit=False)
    return {
        "wide": wide,
        "deep": deep,
        "published": made("published", tokenizer=PublishedIds(str(index))),
        "other": made(
            "other", tokenizer=ItemIds(), data__source=SyntheticWorld(items=100, users=300)
        ),
        "runs": runs,
    }


@pytest.fixture(scope="module")
def opened(folders):
    return gather_runs([folders[name] for name in ("wide", "deep", "published")], folders["runs"])


@pytest.fixture(scope="module")
def compared(opened):
    return compare_tokens(opened)


def row_of(compared, name):
    (row,) = (row for row in compared["measures"] if row["name"] == name)
    return row


def test_quality_is_that_of_the_codes_in_use(opened, compared):
    wide = opened[0]
    pairs = successive_pairs(training_sequences(wide.data.histories, wide.data.split))
    assert compared["categories"]["column"] == "category"
    plain = quality_report(
        wide.codes, wide.sizes, vectors=wide.vectors, decode=wide.decoder(), pairs=pairs
    )
    told = compared["runs"]["wide"]["quality"]
    assert {name: told[name] for name in plain if name != "advice"} == {
        name: value for name, value in plain.items() if name != "advice"
    }
    assert wide.codes.shape == (120, 2)
    np.testing.assert_array_equal(wide.codes, np.asarray(wide.tokens.ids.codes)[:, :2])
    # The very numbers that the run's own stage found, where both have them.
    own = wide.tokens.quality["quality"]
    for name in (
        "collisions",
        "levels",
        "reconstruction",
        "alignment",
        "neighbourhood",
        "behaviour",
    ):
        assert told[name] == own[name]
    assert {**told["categories"], "column": "category"} == own["categories"]
    assert told["advice"] == own["advice"]
    assert json.loads(json.dumps(compared)) == compared


def test_published_ids_are_judged_without_codebooks(compared):
    """The same codes as `wide`: equal where no codebook is needed, a gap elsewhere."""
    for row in compared["measures"]:
        ours, theirs = row["values"]["wide"], row["values"]["published"]
        needs_codebooks = row["section"] == "Reconstruction" or row["name"].startswith("HR@")
        assert theirs == (None if needs_codebooks else pytest.approx(ours)), row["name"]
    assert any("published: came without codebooks" in note for note in compared["notes"])


def test_the_best_of_a_line():
    def quality(lost, explained):
        return {"collisions": {"lost_ids": lost}, "reconstruction": [{"explained": explained}]}

    reports = {"a": quality(0.1, 0.5), "b": quality(0.1, 0.9), "c": quality(0.3, 0.2)}
    rows = {row["name"]: row for row in measure_rows(reports, same_vectors=True)}
    assert set(rows) == {
        "IDs lost to collisions",
        "variance explained",
        "the same by the first level",
    }
    assert rows["IDs lost to collisions"]["best"] == ["a", "b"]
    assert rows["IDs lost to collisions"]["values"] == {"a": 0.1, "b": 0.1, "c": 0.3}
    assert rows["variance explained"]["best"] == ["b"]
    # Errors against different vectors are not compared; collisions still are.
    rows = {row["name"]: row for row in measure_rows(reports, same_vectors=False)}
    assert rows["variance explained"]["best"] == []
    assert rows["IDs lost to collisions"]["best"] == ["a", "b"]
    same = measure_rows({"a": quality(0.1, 0.5), "b": quality(0.1, 0.5)}, same_vectors=True)
    assert all(row["best"] == [] for row in same)
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)


def test_groups_are_the_fullest_and_what_lies_below():
    labels = ["x", "x", "y", "z", "z", "y", "z", "x"]
    first, second = example_groups(CODES, TITLES, POPULARITY, labels)
    assert (first["prefix"], first["items"]) == ("<a_1>", 4)
    assert (first["category"], first["category_share"]) == ("z", 0.75)
    # The most popular first, the lower row among equals.
    assert first["parts"][0] == {
        "prefix": "<a_1><b_0>", "items": 3, "titles": ["item 3", "item 5", "item 4"],
    }  # fmt: skip
    assert [part["prefix"] for part in first["parts"]] == ["<a_1><b_0>", "<a_1><b_1>"]
    # Code 2 has a single item, which is no group.
    assert (second["prefix"], second["items"]) == ("<a_0>", 3)
    assert "category" not in example_groups(CODES, TITLES, POPULARITY)[0]
    flat = example_groups(CODES[:, :1], TITLES, POPULARITY)
    assert flat[0]["parts"][0]["prefix"] == "<a_1>"
    assert example_groups(np.arange(8)[:, None], TITLES, POPULARITY) == []
    many = np.repeat(np.arange(9), np.arange(9, 0, -1) + 1)[:, None]
    chosen = example_groups(many, ["t"] * len(many), np.zeros(len(many), int))
    assert [group["prefix"] for group in chosen] == ["<a_0>", "<a_3>", "<a_6>"]


def test_collisions_and_hot_spots():
    groups = collision_groups(CODES, TITLES, POPULARITY)
    assert [(group["prefix"], group["items"]) for group in groups] == [
        ("<a_1><b_0>", 3),
        ("<a_0><b_0>", 2),
    ]
    assert groups[1]["titles"] == ["item 1", "item 0"]
    assert collision_groups(np.arange(8)[:, None], TITLES, POPULARITY) == []
    spots = hot_spots(CODES, (4, 2), TITLES, POPULARITY)
    assert [(spot["level"], spot["code"], spot["items"]) for spot in spots] == [
        (0, 1, 4), (0, 0, 3), (1, 0, 6), (1, 1, 2),
    ]  # fmt: skip
    assert spots[0]["times_even"] == 2.0
    assert spots[0]["events"] == pytest.approx(21 / 33)
    assert spots[0]["title"] == "item 3"


def test_the_command_prints_and_writes(folders, tmp_path, capsys):
    page = tmp_path / "out/tokens.html"
    words = ["--compare", str(folders["wide"]), str(folders["deep"]), "--out", str(page)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 tokenizers of the 120 items of ")
    assert CAUTION.split(":")[0] in " ".join(text.split())
    assert re.search(r"measure +wide +deep\n", text)
    assert "Advice for deep" in text
    numbers = json.loads((tmp_path / "out/tokens.json").read_text())
    assert list(numbers["runs"]) == ["wide", "deep"]
    lost = numbers["runs"]["deep"]["quality"]["collisions"]["lost_ids"]
    assert re.search(rf"IDs lost to collisions +\S+ +{lost:.1%}", text)
    assert sorted(each.name for each in page.parent.iterdir()) == ["tokens.html", "tokens.json"]
    html = page.read_text()
    assert f"{lost:.1%}" in html
    assert "http" not in html  # self-contained
    assert html.count("<svg") == 4
    for name in ("Advice", "All numbers", "Use of the codes", "What the codes hold", "Hot spots"):
        assert f"<h2>{name}</h2>" in html


def test_recipes_are_run_as_far_as_their_tokens(folders, root, tmp_path, capsys):
    file = tmp_path / "again.py"
    file.write_text(
        "from jaxrec.data.synthetic import SyntheticWorld\n"
        "from jaxrec.recipe import load_recipe, replace\n"
        "from jaxrec.tokenization import PublishedIds\n"
        f"recipe = load_recipe({str(root / 'configs/synthetic.py')!r})\n"
        "recipe = replace(recipe, 'data.source', SyntheticWorld(items=120, users=300))\n"
        f"ids = PublishedIds({str(folders['runs'] / 'index.json')!r}, sizes=(20, 30))\n"
        "recipe = replace(replace(recipe, 'name', 'again'), 'tokenizer', ids)\n"
    )
    words = ["--compare", str(folders["wide"]), str(file), "--runs", str(folders["runs"])]
    assert main(words) == 0
    capsys.readouterr()
    made = folders["runs"] / "again"
    assert (made / "artefacts/tokens/stage.json").is_file()
    assert not (made / "checkpoints").exists()
    numbers = json.loads((folders["runs"] / "tokens.json").read_text())
    assert numbers["runs"]["again"]["sizes"] == [20, 30]
    assert (folders["runs"] / "tokens.html").is_file()


def test_what_comes_from_data_is_escaped(compared, opened):
    evil = "<script>alert(1)</script>\x1b[31m"
    told = json.loads(json.dumps(compared))
    told["dataset"] = evil
    told["notes"] = [evil]
    for entry in told["runs"].values():
        entry["quality"]["advice"] = [evil]
        entry["folder"] = entry["quantizer"] = evil
        entry["groups"][0]["category"] = evil
        entry["groups"][0]["parts"][0]["titles"] = [evil]
        entry["collisions"] = [{"prefix": evil, "items": 2, "titles": [evil, evil]}]
        entry["hot_spots"][0]["title"] = evil
    told["runs"] = dict(zip((evil, "b", "c"), told["runs"].values()))
    for row in told["measures"]:
        row["values"] = dict(zip((evil, "b", "c"), row["values"].values()))
    named = [dataclasses.replace(opened[0], name=evil), *opened[1:]]
    page = render_tokens(told, named)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") > 15
    text = tokens_text(told)
    assert "\x1b" not in text
    assert "<script>" in text  # a terminal shows it as it is


def test_a_healthy_index_is_called_so(compared):
    told = json.loads(json.dumps(compared))
    told["runs"]["wide"]["quality"]["advice"] = []
    assert f"Advice for wide\n  {HEALTHY}\n" in tokens_text(told)


def test_categories_come_from_a_column(opened, monkeypatch):
    found = compare_tokens(opened[:1])
    assert found["categories"] == {"column": "category", "take": "first"}
    quality = found["runs"]["wide"]["quality"]["categories"]
    assert quality["n_labelled"] == 120
    row = quality["prefixes"][1]
    assert row_of(found, "purity of the first code")["values"]["wide"] == row["purity"]
    above = (row["purity"] - row["purity_chance"]) / (1 - row["purity_chance"])
    assert row_of(found, "the same, above chance")["values"]["wide"] == pytest.approx(above)
    titles = compare_tokens(opened[:1], column="title")["runs"]["wide"]["quality"]["categories"]
    assert titles["n_categories"] == len(set(opened[0].data.titles))
    monkeypatch.setattr(categories_module, "COLUMNS", ("colour",))
    without = compare_tokens(opened[:1])
    assert without["categories"] is None
    assert "purity of the first code" not in {row["name"] for row in without["measures"]}
    with pytest.raises(ValueError, match=r"no column 'colour'; they have"):
        compare_tokens(opened[:1], column="colour")


def test_other_vectors_and_histories_are_pointed_out(opened):
    wide, deep = opened[:2]
    split = dataclasses.replace(deep.data.split, name="another")
    data = dataclasses.replace(deep.data, split=split)
    found = compare_tokens([wide, dataclasses.replace(deep, vectors_id="other", data=data)])
    assert any("deep: made with other histories" in note for note in found["notes"])
    assert any("quantized different vectors" in note for note in found["notes"])
    assert row_of(found, "variance explained")["best"] == []
    assert row_of(compare_tokens(opened[:2]), "variance explained")["best"] == ["wide"]


def copy_of(folder, where):
    shutil.copytree(folder, where)
    return where


def test_wrong_runs_are_clear_errors(folders, small, root, tmp_path):
    wide, runs = folders["wide"], folders["runs"]
    page = tmp_path / "page.html"

    def refused(*paths):
        with pytest.raises(ValueError, match=r"\w") as raised:
            main(["--compare", *map(str, paths), "--out", str(page), "--runs", str(runs)])
        assert not page.exists()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "needs at least two tokenizers, got only" in refused(wide)
    assert "is given twice" in refused(wide, wide)
    assert "are the same run" in refused(wide, wide / ".." / "wide")
    assert "nothing does not exist; give folders of runs" in refused(wide, tmp_path / "nothing")
    assert "is a file and no recipe" in refused(wide, wide / "recipe.json")
    assert "there is no recipe at" in refused(wide, tmp_path / "nothing.py")
    assert "is not a run: it has no recipe.json" in refused(wide, tmp_path)
    told = refused(wide, folders["other"])
    assert "wide and other have different catalogues (120 and 100 items, 100 in common)" in told
    bare = copy_of(wide, tmp_path / "bare")
    shutil.rmtree(bare / "artefacts/tokens")
    assert f"{bare} has no semantic IDs yet: `jaxrec tokenize {bare}`" in refused(wide, bare)
    torn = copy_of(wide, tmp_path / "torn")
    (torn / "artefacts/tokens/semantic_ids.npz").unlink()
    assert "torn/artefacts/tokens does not hold what was published" in refused(wide, torn)
    again = tmp_path / "again.py"
    again.write_text(
        "from jaxrec.recipe import load_recipe, replace\n"
        f"recipe = replace(load_recipe({str(root / 'configs/synthetic.py')!r}), 'name', 'wide')\n"
    )
    assert "are the same run" in refused(wide, again)
    sparse = run(
        replace(replace(small, "tokenizer", ItemIds()), "name", "sparse"), runs=runs, last="tokens"
    )
    assert "sparse has sparse item ids, which have no codes" in refused(wide, sparse)


def test_another_order_of_the_same_items_is_refused(folders, tmp_path):
    turned = copy_of(folders["wide"], tmp_path / "turned")
    path = turned / "artefacts/histories/items.npy"
    items = np.load(path)
    path.unlink()  # a link to the cache
    np.save(path, items[::-1])
    with pytest.raises(ValueError, match="the same items in another order"):
        gather_runs([folders["wide"], turned], tmp_path)


def test_outputs_that_cannot_be_written_are_found_first(tmp_path):
    def refused(out):
        with pytest.raises(ValueError, match=r"\w") as raised:
            main(["--compare", "runs/a", "runs/b", "--out", str(out)])
        return str(raised.value)

    assert "is a folder; give --out the name of a file" in refused(tmp_path)
    assert "its numbers go to a .json beside it" in refused(tmp_path / "page.json")
    (tmp_path / "file").write_text("x")
    assert "is not a writable folder" in refused(tmp_path / "file" / "page.html")
    (tmp_path / "page.json").mkdir()
    assert "page.json is a folder" in refused(tmp_path / "page.html")
