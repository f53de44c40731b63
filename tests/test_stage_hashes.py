"""Keys of cached stages are frozen: what a stage means cannot change under an old key.

When one of these fails, either the meaning changed (then raise the component's `schema_version`
and renew the hash here) or it did not (then undo what changed the key: a new field needs a default
that keeps the old behaviour).
"""

import pytest

from jaxrec.data.datasets.movielens import MovieLens100K
from jaxrec.data.synthetic import SyntheticWorld
from jaxrec.recipe import component_hash
from jaxrec.representation import (
    L2,
    PCA,
    HashedTfidf,
    ItemVectors,
    Standardise,
    TextFields,
    Whiten,
    WordLlama,
)
from jaxrec.tokenization import (
    Capacity,
    ExtraDigit,
    Keep,
    NextNearest,
    RandomLast,
    Reassign,
    ResidualKMeans,
    RqVae,
    Separate,
    SinkhornLast,
    Tokenizer,
)

GOLDEN = {
    "MovieLens100K": (MovieLens100K(), "f5eeb9e401e12c07"),
    "SyntheticWorld": (SyntheticWorld(items=70), "0357d66e8bf777d2"),
    "ItemVectors": (ItemVectors(), "ce2ba7b0fdde97b1"),
    "ItemVectors of TF-IDF": (
        ItemVectors(HashedTfidf(), TextFields(("title", "brand")), (L2(), Standardise(), PCA(8))),
        "0fb9a1882a56031d",
    ),
    "Whiten": (Whiten(4), "d4feb92a9f0e3e1e"),
    "WordLlama": (WordLlama(), "d02dc656c5912d1a"),
    "Tokenizer": (Tokenizer(), "7574699c86314cf4"),
    "Tokenizer, reassigned": (Tokenizer(ResidualKMeans(2, 16), Reassign()), "f46b9f1e7e1263a6"),
    "Tokenizer, kept": (Tokenizer(ResidualKMeans(2, 16), Keep()), "f039fc5c9a24477d"),
    "Tokenizer of an RQ-VAE": (Tokenizer(RqVae()), "6d5d0fbbb1adda0f"),
    "Separate": (Separate((ResidualKMeans(2, 16), RqVae()), (64, 32)), "83f0bacead120669"),
    "ExtraDigit": (ExtraDigit(capacity=8), "c63c9893df4b9fd5"),
    "NextNearest": (NextNearest(), "fc230bace1bc969c"),
    "SinkhornLast": (SinkhornLast(), "005aed858ac3b865"),
    "Capacity": (Capacity(5), "47fe1075f0fa99fc"),
    "RandomLast": (RandomLast(), "48b88e19f5530170"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_key_of_a_component_is_frozen(name):
    component, golden = GOLDEN[name]
    assert component_hash(component)[:16] == golden


def test_a_default_spelt_out_keeps_the_key():
    assert component_hash(ResidualKMeans(levels=3)) == component_hash(ResidualKMeans())
    assert component_hash(ResidualKMeans(levels=4)) != component_hash(ResidualKMeans())


def test_a_new_schema_version_changes_the_key(monkeypatch):
    before = component_hash(ResidualKMeans())
    monkeypatch.setattr(ResidualKMeans, "schema_version", ResidualKMeans.schema_version + 1)
    assert component_hash(ResidualKMeans()) != before


def test_so_does_that_of_a_component_that_is_a_default(monkeypatch):
    before = component_hash(Tokenizer()), component_hash(ItemVectors())
    monkeypatch.setattr(ResidualKMeans, "schema_version", ResidualKMeans.schema_version + 1)
    monkeypatch.setattr(L2, "schema_version", L2.schema_version + 1)
    assert component_hash(Tokenizer()) != before[0]
    assert component_hash(ItemVectors()) != before[1]
