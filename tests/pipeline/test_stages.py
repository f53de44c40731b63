"""What the cached stages write, and what makes them run again."""

import numpy as np
import pytest

from jaxrec.data.dataset import DatasetFolder, write_dataset
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.pipeline import stages
from jaxrec.pipeline.run import open_run
from jaxrec.recipe import replace
from jaxrec.tokenization import ItemIds, ResidualKMeans, Tokenizer, prefix_purity, successive_pairs
from jaxrec.tokenization.quality_behaviour import prefix_overlap

TOKENIZER = Tokenizer(ResidualKMeans(levels=2, codes=6))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A log, its items, and a function that writes them as a data set."""
    folder = tmp_path_factory.mktemp("world")
    SyntheticWorld(items=60, users=80).write(folder / "world")
    there = DatasetFolder(str(folder / "world"))
    log, items = there.interactions(), there.items().select("item", "title", "category")

    def write(name, items):
        write_dataset(folder / name, log, items, name="world", source="a test", licence="none")
        return CanonicalFolder(str(folder / name))

    return items, write


def make_tokens(small, source, runs, tokenizer=TOKENIZER):
    recipe = replace(replace(small, "data.source", source), "tokenizer", tokenizer)
    with open_run(recipe, runs) as place:
        data = stages.prepare_data(recipe, place)
        vectors = stages.make_vectors(recipe, place, data)
        return data, vectors, stages.make_tokens(recipe, place, data, vectors)


def test_the_quality_of_a_run_is_judged_by_categories_and_training(small, world, tmp_path):
    items, write = world
    data, _, tokens = make_tokens(small, write("plain", items), tmp_path)
    quality, codes = tokens.quality["quality"], tokens.ids.codes[:, :2]
    rows = dict(zip(items["item"], items["category"]))
    labels = [rows[item] for item in data.histories.items.tolist()]
    assert quality["categories"] == {**prefix_purity(codes, labels), "column": "category"}
    pairs = successive_pairs(stages.training_sequences(data.histories, data.split))
    assert quality["behaviour"] == prefix_overlap(codes, pairs)
    assert 0 < quality["neighbourhood"]["quantized"]["hr@10"] < 1
    # Nothing held out is among the pairs: a history of e events has e - 3 of training.
    assert len(pairs) <= np.maximum(data.histories.lengths - 3, 0).sum()


def test_items_without_categories_or_codes(small, world, tmp_path):
    items, write = world
    source = write("bare", items.drop("category"))
    quality = make_tokens(small, source, tmp_path)[2].quality["quality"]
    assert "categories" not in quality
    assert "behaviour" in quality
    sparse = make_tokens(small, source, tmp_path, ItemIds())[2]
    assert set(sparse.quality) == {"fit", "final"}


def test_other_words_about_the_same_items_are_read_again(small, world, tmp_path):
    """The log is the same to the last event, so the histories are; vectors and quality are not."""
    items, write = world
    sources = {
        "plain": write("plain", items),
        "renamed": write("renamed", items.with_columns(category=items["title"].str.slice(0, 3))),
    }
    found = {name: make_tokens(small, each, tmp_path / name) for name, each in sources.items()}
    again = make_tokens(small, sources["plain"], tmp_path / "plain")
    assert again[1].artefact.was_cached
    assert again[2].artefact.was_cached
    shared = make_tokens(small, sources["renamed"], tmp_path / "plain")
    assert shared[0].artefact.content == found["plain"][0].artefact.content
    for place in (1, 2):
        assert not shared[place].artefact.was_cached
        assert shared[place].artefact.content == found["renamed"][place].artefact.content
    before, after = (each[2].quality["quality"]["categories"] for each in (again, shared))
    assert before["n_categories"] != after["n_categories"]
