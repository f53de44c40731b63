"""Nothing of the test reaches training: permute every test item, and training is bit-identical."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from jaxrec.backbones.sasrec import SasRec
from jaxrec.data.dataset import DatasetFolder, write_dataset
from jaxrec.data.datasets.canonical import CanonicalFolder
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.decoding import InnerProduct
from jaxrec.objectives.item_sampled import ItemSampledSoftmax
from jaxrec.pipeline import stages
from jaxrec.pipeline.run import Workplace, open_run, train
from jaxrec.recipe import Recipe, replace
from jaxrec.representation import Cooccurrence, ItemVectors, NoVectors
from jaxrec.tokenization import ItemIds

pytestmark = pytest.mark.usefixtures("one_device")


def retriever_of(small: Recipe) -> Recipe:
    """A retriever that also reads popularity, which must be that of training."""
    recipe = replace(small, "stages.0.objective", ItemSampledSoftmax(16, draw="popularity"))
    return dataclasses.replace(
        recipe,
        items=NoVectors(),
        tokenizer=ItemIds(),
        generator=SasRec(layers=1, width=16, heads=2, length=31),
        decoding=InnerProduct(k=50),
    )


def generator_of(small: Recipe) -> Recipe:
    """A generator whose item vectors come from behaviour."""
    return dataclasses.replace(small, items=ItemVectors(encoder=Cooccurrence()))


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """One log three times: as it is, its last items permuted, its first items permuted."""
    folder = tmp_path_factory.mktemp("logs")
    SyntheticWorld(items=120, users=150).write(folder / "plain")
    log = DatasetFolder(str(folder / "plain")).interactions().with_row_index("row")
    items = DatasetFolder(str(folder / "plain")).items()
    for name, place in (("last", "last"), ("first", "first")):
        row = getattr(pl.col("row"), place)()
        chosen = log.sort("user", "timestamp", maintain_order=True).group_by("user").agg(row)
        where = np.sort(chosen["row"].to_numpy())
        names = log["item"].to_numpy().copy()
        names[where] = np.random.default_rng(0).permutation(names[where])
        changed = log.with_columns(pl.Series("item", names)).drop("row")
        write_dataset(folder / name, changed, items, name="world", source="a test", licence="none")
    return folder


def trained(recipe: Recipe, log, runs) -> tuple:
    """Parameters and semantic IDs after training on a log."""
    recipe = replace(recipe, "data.source", CanonicalFolder(str(log)))
    # Validated and chosen by validation, which is of the training side of the wall.
    for field, value in (("steps", 10), ("validate_every", 5), ("checkpoint_every", 5)):
        recipe = replace(recipe, f"stages.0.fit.{field}", value)
    with open_run(recipe, runs) as place:
        assert isinstance(place, Workplace)
        data = stages.prepare_data(recipe, place)
        tokens = stages.make_tokens(recipe, place, data, stages.make_vectors(recipe, place, data))
        model = train(recipe, place, data, tokens)
    target = np.asarray(data.histories.item)[data.split.test]
    names = np.asarray(data.histories.items)[target]
    return jax.device_get(model.params), tokens.ids.codes, names


@pytest.mark.parametrize("make", [retriever_of, generator_of])
def test_test_items_do_not_reach_training(make, small, logs, tmp_path):
    recipe = make(small)
    found = {name: trained(recipe, logs / name, tmp_path / name) for name in
             ("plain", "last", "first")}  # fmt: skip
    (params, codes, targets), other = found["plain"], found["last"]
    assert np.mean(targets != other[2]) > 0.9, "the permutation changed the test"
    np.testing.assert_array_equal(codes, other[1])
    jax.tree.map(np.testing.assert_array_equal, params, other[0])
    # The same change of training items does reach it: the comparison above can fail.
    changed = jax.tree.map(np.array_equal, params, found["first"][0])
    assert not all(jax.tree.leaves(changed))
