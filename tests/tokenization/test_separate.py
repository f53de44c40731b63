"""A quantizer a modality: what each would do alone, and where its codes stand."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxrec.parallel import make_mesh, rows_sharding
from jaxrec.recipe import from_json, to_json
from jaxrec.representation import ItemVectors, Precomputed
from jaxrec.representation.fused import Fused
from jaxrec.tokenization import (
    Keep,
    KMeansTree,
    NextNearest,
    Quantizer,
    ResidualKMeans,
    SemanticIds,
    Separate,
    Streamed,
    Tokenizer,
    drift_report,
    extend,
)
from jaxrec.tokenization.extend import open_quantizer

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(160, 9)).astype(np.float32) + np.float32(2)
TEXT, IMAGE = VECTORS[:, :6], VECTORS[:, 6:]
ITEMS = [f"item {row}" for row in range(160)]
FIRST = ResidualKMeans(levels=3, codes=8, iterations=5)
SECOND = ResidualKMeans(levels=2, codes=4, iterations=5)
SPLIT = Separate(parts=(FIRST, SECOND), widths=(6, 3))
WOVEN = dataclasses.replace(SPLIT, order="interleaved")


@functools.cache
def fitted(quantizer):
    """Its state after the vectors it is for, fitted when a test first asks for it."""
    return quantizer.fit(KEY, {FIRST: TEXT, SECOND: IMAGE}.get(quantizer, VECTORS))


@functools.cache
def own_codes():
    """Codes of text and image by their own quantizers."""
    return (
        np.asarray(FIRST.encode(fitted(FIRST), TEXT)),
        np.asarray(SECOND.encode(fitted(SECOND), IMAGE)),
    )


@dataclasses.dataclass(frozen=True)
class Reader:
    """Remembers what its fit was given beside vectors."""

    reads: tuple[str, ...]
    seen: dict = dataclasses.field(default_factory=dict)

    def fit(self, key, vectors, aux=None):
        self.seen.clear()
        self.seen.update(aux or {})
        return len(vectors)


def test_it_is_a_quantizer_and_survives_the_recipe_file():
    assert isinstance(SPLIT, Quantizer)
    assert from_json(json.loads(json.dumps(to_json(WOVEN)))) == WOVEN
    assert hash(WOVEN) == hash(dataclasses.replace(WOVEN)) != hash(SPLIT)


def test_the_codes_of_a_block_are_those_of_its_quantizer_alone():
    np.testing.assert_array_equal(SPLIT.encode(fitted(SPLIT), VECTORS), np.hstack(own_codes()))
    first, second = own_codes()
    woven = np.stack([first[:, 0], second[:, 0], first[:, 1], second[:, 1], first[:, 2]], 1)
    np.testing.assert_array_equal(WOVEN.encode(fitted(WOVEN), VECTORS), woven)
    assert SPLIT.sizes(fitted(SPLIT)) == SPLIT.asked_sizes == (8, 8, 8, 4, 4)
    assert WOVEN.sizes(fitted(SPLIT)) == WOVEN.asked_sizes == (8, 4, 8, 4, 8)
    # Without one modality the other keeps its codes to the last one.
    alone = Separate((SECOND,), (3,))
    np.testing.assert_array_equal(alone.encode(alone.fit(KEY, IMAGE), IMAGE), second)


def test_weights_reach_the_parts_and_the_mean():
    weights = np.linspace(0, 2, 160, dtype=np.float32)
    state = SPLIT.fit(KEY, VECTORS, {"weights": weights})
    own = SECOND.fit(KEY, IMAGE, {"weights": weights})
    np.testing.assert_array_equal(SPLIT.encode(state, VECTORS)[:, 3:], SECOND.encode(own, IMAGE))
    assert (np.asarray(SPLIT.encode(state, VECTORS)[:, 3:]) != own_codes()[1]).any()
    np.testing.assert_allclose(state.mean, np.average(VECTORS, 0, weights), rtol=1e-5)


@pytest.mark.parametrize("split", [SPLIT, WOVEN])
def test_a_prefix_decodes_what_it_has_and_the_mean_of_the_rest(split):
    codes = np.asarray(split.encode(fitted(SPLIT), VECTORS))
    means = VECTORS.mean(0, dtype=np.float64)
    depths = [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    if split is WOVEN:
        depths = [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2)]
    for length, (first, second) in enumerate(depths, start=1):
        decoded = np.asarray(split.decode(fitted(SPLIT), codes[:, :length]))
        text = np.asarray(FIRST.decode(fitted(FIRST), own_codes()[0][:, :first]))
        np.testing.assert_array_equal(decoded[:, :6], text)
        if second:
            image = np.asarray(SECOND.decode(fitted(SECOND), own_codes()[1][:, :second]))
            np.testing.assert_array_equal(decoded[:, 6:], image)
        else:
            np.testing.assert_allclose(decoded[:, 6:], np.tile(means[6:], (160, 1)), rtol=1e-5)


def test_decode_takes_codes_that_no_item_has():
    decoded = SPLIT.decode(fitted(SPLIT), np.array([[7, 0, 7, 3, 0]]))
    np.testing.assert_array_equal(
        decoded[:, :6], FIRST.decode(fitted(FIRST), np.array([[7, 0, 7]]))
    )
    np.testing.assert_array_equal(decoded[:, 6:], SECOND.decode(fitted(SECOND), np.array([[3, 0]])))


def test_arrays_there_and_back():
    split = Separate((SPLIT, KMeansTree(branches=8)), (9, 4), "interleaved")
    vectors = np.hstack([VECTORS, VECTORS[:, 1:5]])
    state = split.fit(KEY, vectors)
    arrays = split.to_arrays(state)
    assert {"mean", "widths", "owners", "part_0/part_1/codebook_1"} < set(arrays)
    assert arrays["owners"].tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    back = split.from_arrays(arrays)
    codes = split.encode(state, vectors)
    np.testing.assert_array_equal(split.encode(back, vectors), codes)
    np.testing.assert_array_equal(
        split.decode(back, codes[:, :1]), split.decode(state, codes[:, :1])
    )


def test_another_cut_or_order_is_another_token_space():
    arrays = SPLIT.to_arrays(fitted(SPLIT))
    for other, message in (
        (WOVEN, r"owners \[0, 0, 0, 1, 1\], and this Separate \[0, 1, 0, 1, 0\]"),
        (dataclasses.replace(SPLIT, widths=(5, 4)), r"widths \[6, 3\], and this Separate \[5, 4\]"),
        (
            Separate((FIRST,), (9,)),
            "has mean, owners, part_0, part_1, widths; a Separate of 1 parts",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            other.from_arrays(arrays)
    with pytest.raises(ValueError, match="lacks codebook_1"):
        SPLIT.from_arrays({name: a for name, a in arrays.items() if name != "part_1/codebook_1"})
    twins = Separate((SECOND, SECOND), (3, 3))  # of equal sizes in any order
    ids = [
        Tokenizer(each)(KEY, VECTORS[:, 3:], items=ITEMS)[0]
        for each in (twins, dataclasses.replace(twins, order="interleaved"))
    ]
    assert ids[0].space == ids[1].space
    assert ids[0].space_id != ids[1].space_id


def test_the_report_says_where_each_block_lies():
    report = WOVEN.report(fitted(SPLIT))
    json.dumps(report)
    assert (report["levels"], report["codes"]) == (5, [8, 4, 8, 4, 8])
    first, second = report["blocks"]
    assert (first["columns"], first["places"]) == ([0, 6], [0, 2, 4])
    assert (second["columns"], second["places"]) == ([6, 9], [1, 3])
    assert {name: second[name] for name in SECOND.report(fitted(SECOND))} == SECOND.report(
        fitted(SECOND)
    )


def test_the_report_of_fused_vectors_names_the_widths(tmp_path):
    for name, matrix in (("text", TEXT), ("image", IMAGE)):
        np.save(tmp_path / f"{name}.npy", matrix)
    fused = Fused(tuple(Precomputed(str(tmp_path / f"{name}.npy")) for name in ("text", "image")))
    made = ItemVectors(fused, steps=())({"item": ITEMS})
    columns = [block["columns"] for block in made.report["blocks"]]
    assert [end - start for start, end in columns] == list(SPLIT.widths)
    ids, report = Tokenizer(SPLIT, Keep())(KEY, made.vectors, items=ITEMS)
    assert [block["columns"] for block in report["fit"]["blocks"]] == columns
    own = FIRST.fit(KEY, made.vectors[:, :6])
    np.testing.assert_array_equal(ids.codes[:, :3], FIRST.encode(own, made.vectors[:, :6]))


def test_each_part_is_given_what_it_reads():
    readers = Reader(("collaborative", "pairs")), Reader(("pairs", "has_behaviour")), Reader(())
    split = Separate(readers, (2, 3, 4))
    assert split.reads == ("collaborative", "pairs", "has_behaviour")
    aux = {"weights": np.ones(160), "pairs": 1, "collaborative": 2, "has_behaviour": 3}
    split.fit(KEY, VECTORS, aux)
    assert [set(reader.seen) for reader in readers] == [
        {"weights", "collaborative", "pairs"},
        {"weights", "pairs", "has_behaviour"},
        {"weights"},
    ]
    with pytest.raises(ValueError, match="reads weights from aux, and got pairs"):
        SPLIT.fit(KEY, VECTORS, {"pairs": 1})


def test_an_item_without_a_modality_has_the_codes_nearest_to_zeros():
    lacking = VECTORS[:2].copy()
    lacking[:, 6:] = 0
    codes = np.asarray(SPLIT.encode(fitted(SPLIT), lacking))
    np.testing.assert_array_equal(codes[:, :3], own_codes()[0][:2])
    book = np.asarray(fitted(SECOND).codebooks[0] + fitted(SECOND).offset, np.float64)
    assert codes[:, 3].tolist() == [int((book**2).sum(1).argmin())] * 2


def test_rows_over_a_mesh_and_parts_of_other_kinds():
    split = Separate((Streamed(FIRST, passes=0), KMeansTree(branches=4)), (6, 3), "interleaved")
    state = split.fit(KEY, VECTORS)
    codes = np.asarray(split.encode(state, VECTORS))
    np.testing.assert_array_equal(codes[:, [0, 2, 4]], own_codes()[0])
    assert not hasattr(split, "asked_sizes")  # a tree is as deep as its vectors make it
    there = jax.device_put(VECTORS, rows_sharding(make_mesh()))
    np.testing.assert_array_equal(
        SPLIT.encode(fitted(SPLIT), there), SPLIT.encode(fitted(SPLIT), VECTORS)
    )


def test_the_stage_from_the_fit_to_new_items(tmp_path):
    policy = NextNearest()
    stage = Tokenizer(SPLIT, policy)
    ids, report = stage(KEY, VECTORS[:120], items=ITEMS[:120])
    assert ids.space.sizes == (8, 8, 8, 4, 4)
    assert report["final"]["is_unique"]
    assert report["fit"]["blocks"][1]["columns"] == [6, 9]
    explained = [row["explained"] for row in report["quality"]["reconstruction"]]
    assert explained == sorted(explained)
    ids.save(tmp_path / "ids")
    opened = SemanticIds.load(tmp_path / "ids")
    assert opened.space_id == ids.space_id
    state, _ = open_quantizer(opened, SPLIT)
    newer, _ = extend(opened, SPLIT, policy, VECTORS[120:], ITEMS[120:])
    np.testing.assert_array_equal(newer.codes[:120], ids.codes)
    assert newer.summary()["is_unique"]
    drift = drift_report(SPLIT, state, VECTORS[:120], VECTORS[120:])
    assert len(drift["levels"]) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": (), "widths": ()}, "at least one quantizer in parts.*got 0 parts and 0 widths"),
        ({"widths": (9,)}, "a width for each, got 2 parts and 1 widths"),
        ({"widths": (9, 0)}, r"at least one column, got \(9, 0\)"),
        ({"order": "by modality"}, "by_modality"),
    ],
)
def test_bad_hyper_parameters(fields, message):
    # The type checker of the tests may come first where the field is a Literal.
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(SPLIT, **fields)


def test_blocks_of_other_widths_are_one_clear_error():
    message = r"width 8 cannot be cut into blocks of \(6, 3\) columns, 9 together; give the widths"
    with pytest.raises(ValueError, match=message):
        SPLIT.fit(KEY, VECTORS[:, :8])
    with pytest.raises(ValueError, match=message):
        SPLIT.encode(fitted(SPLIT), VECTORS[:, :8])
    with pytest.raises(ValueError, match=r"level 3 has codes 4\.\.4, outside 0\.\.3"):
        SPLIT.decode(fitted(SPLIT), np.array([[0, 0, 0, 4, 0]]))
