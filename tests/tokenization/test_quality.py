"""Quality numbers against closed forms, slow references and the goldens of METHODS T23."""

import itertools
import json
import math

import numpy as np
import pytest

from jaxrec.tokenization import quality
from jaxrec.tokenization.quality_advice import advice
from jaxrec.tokenization.quality_behaviour import forge_like, prefix_overlap, vector_hits
from jaxrec.tokenization.quality_categories import prefix_purity

GENERATOR = np.random.default_rng(0)
CODES = GENERATOR.integers(0, 4, (120, 3))
SIZES = (4, 5, 4)
VECTORS = GENERATOR.normal(size=(120, 7)).astype(np.float32)


def test_three_collision_rates():
    codes = np.array([[0, 0]] * 3 + [[0, 1]] * 2 + [[1, 0], [1, 1], [1, 2], [1, 3], [2, 0]])
    assert quality.collision_rates(codes) == {
        "lost_ids": pytest.approx(0.3),
        "items_sharing": 0.5,
        "ids_shared": pytest.approx(2 / 7),
        "n_sids": 7,
        "max_bucket": 3,
    }


def test_gini_goldens():
    assert quality.gini(np.array([1, 2, 3, 4])) == pytest.approx(0.25)
    assert quality.gini(np.array([4, 1, 3, 2])) == pytest.approx(0.25)
    assert quality.gini(np.array([0, 0, 0, 4])) == pytest.approx(0.75)
    assert quality.gini(np.array([4])) == 0.0
    assert quality.gini(np.array([5, 5, 5])) == pytest.approx(0.0)
    counts = GENERATOR.integers(0, 20, 30)
    # Half the relative mean absolute difference.
    expected = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert quality.gini(counts) == pytest.approx(expected)


def test_usage_of_a_level():
    usage = quality.level_usage(np.array([0, 0, 1, 1]), 4)
    assert usage["used"] == 2
    assert usage["utilisation"] == 0.5
    assert usage["entropy"] == pytest.approx(math.log(2))
    assert usage["perplexity"] == pytest.approx(2)
    assert usage["gini_used"] == pytest.approx(0)
    assert usage["gini_all"] == pytest.approx(0.5)
    even = quality.level_usage(np.arange(8192), 8192)
    assert even["entropy"] == pytest.approx(9.01, abs=0.001)  # METHODS T4: ln 8192


def test_conditional_entropies_add_up_and_follow_the_definition():
    found = quality.conditional_entropies(CODES)
    joint = np.unique(CODES, axis=0, return_counts=True)[1] / 120
    assert sum(found) == pytest.approx(-(joint * np.log(joint)).sum())
    expected = 0.0
    for code in range(4):
        mine = CODES[CODES[:, 0] == code, 1]
        share = np.bincount(mine) / len(mine)
        share = share[share > 0]
        expected += len(mine) / 120 * -(share * np.log(share)).sum()
    assert found[1] == pytest.approx(expected)
    # A level that the one before decides carries nothing.
    assert quality.conditional_entropies(CODES[:, [0, 0]])[1] == pytest.approx(0)


def test_random_hash_floor_goldens():
    assert quality.random_hash_floor(12101, 256**3) == pytest.approx(0.00072, abs=5e-6)
    assert quality.random_hash_floor(12101, 256**2) == pytest.approx(0.169, abs=5e-4)
    assert quality.random_hash_floor(1, 10) == 0
    assert quality.random_hash_floor(5, 1) == 1
    draws = GENERATOR.integers(0, 50, (2000, 20))
    sharing = np.mean([(np.bincount(draw)[draw] > 1).mean() for draw in draws])
    assert quality.random_hash_floor(20, 50) == pytest.approx(sharing, abs=0.01)


def test_prefix_alignment_equals_the_mean_over_all_pairs():
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    sums, counts = np.zeros(4), np.zeros(4)
    for left, right in itertools.combinations(range(120), 2):
        same = CODES[left] == CODES[right]
        shared = 3 if same.all() else int(same.argmin())
        sums[shared] += unit[left] @ unit[right]
        counts[shared] += 1
    for level, row in enumerate(quality.prefix_alignment(CODES, VECTORS)):
        assert row["shared"] == level
        assert row["pairs"] == counts[level]
        assert row["cosine"] == pytest.approx(sums[level] / counts[level], abs=1e-5)


def test_alignment_rises_with_the_prefix_on_a_hierarchy():
    top, low = GENERATOR.integers(0, 5, 300), GENERATOR.integers(0, 5, 300)
    vectors = GENERATOR.normal(size=(5, 30))[top] * 3 + GENERATOR.normal(size=(5, 30))[low]
    rows = quality.prefix_alignment(np.column_stack([top, low]), vectors)
    cosines = [row["cosine"] for row in rows]
    assert cosines[0] < cosines[1] < cosines[2] == pytest.approx(1)


def test_a_row_of_zeros_does_not_poison_the_alignment():
    vectors = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    rows = quality.prefix_alignment(np.zeros((3, 1), int), vectors)
    assert rows[1] == {"shared": 1, "pairs": 3.0, "cosine": pytest.approx(1 / 3)}
    assert rows[0] == {"shared": 0, "pairs": 0.0, "cosine": 0.0}


def test_duplicates_are_told_apart_from_the_quantizers_collisions():
    vectors = np.array([[1.0], [1.0], [2.0], [3.0]], np.float32)
    codes = np.array([[0], [0], [0], [1]])
    report = quality.duplicate_report(codes, vectors)
    assert report["n_duplicate_rows"] == 1
    assert report["lost_ids_distinct"] == pytest.approx(1 / 3)


def test_reconstruction_by_levels():
    vectors = np.array([[3.0, 4.0], [0.0, -5.0]], np.float32)

    def decode(codes):
        return vectors * (0.5 if codes.shape[1] == 1 else 1.0)

    one, two = quality.reconstruction(np.zeros((2, 2), int), vectors, decode)
    assert one["mse"] == pytest.approx((1.5**2 + 2**2 + 2.5**2) / 4)
    assert one["cosine"] == pytest.approx(1)
    assert two["mse"] == 0
    assert two["explained"] == 1
    variance = ((vectors - vectors.mean(0)) ** 2).mean()
    assert one["explained"] == pytest.approx(1 - one["mse"] / variance)


def test_the_report_is_plain_json():
    report = quality.quality_report(
        CODES, SIZES, vectors=VECTORS, decode=lambda codes: np.zeros((len(codes), 7))
    )
    assert json.loads(json.dumps(report)) == report
    assert report["n_items"] == 120
    assert [level["size"] for level in report["levels"]] == [4, 5, 4]
    assert report["levels"][1]["utilisation"] == 0.8
    assert len(report["reconstruction"]) == 3
    absent = {"alignment", "duplicates", "categories", "behaviour", "neighbourhood"}
    assert absent & set(quality.quality_report(CODES, SIZES)) == set()
    with pytest.raises(ValueError, match=r"must be \[items, 2\]"):
        quality.quality_report(CODES, (4, 4))


def test_the_report_reads_categories_and_pairs():
    """Each part is what its own function says."""
    pairs = GENERATOR.integers(0, 120, (300, 2))
    paths = [["root", "abc"[code % 3]] for code in CODES[:, 0]]
    books = GENERATOR.normal(size=(3, 4, 7))

    def decode(codes):
        return sum(books[level][codes[:, level]] for level in range(codes.shape[1]))

    report = quality.quality_report(
        CODES, SIZES, vectors=VECTORS, decode=decode, categories=paths, pairs=pairs
    )
    assert json.loads(json.dumps(report)) == report
    assert report["categories"] == prefix_purity(CODES, [path[1] for path in paths])
    assert report["categories"]["prefixes"][1]["purity"] == 1.0
    assert report["behaviour"] == prefix_overlap(CODES, pairs)
    neighbourhood = report["neighbourhood"]
    assert neighbourhood["kind"] == "forge_like"
    assert neighbourhood["n_pairs"] == 300
    assert neighbourhood["quantized"] == forge_like(CODES, decode, pairs)
    assert neighbourhood["vectors"] == vector_hits(VECTORS, pairs)
    assert neighbourhood["chance"]["hr@10"] == pytest.approx(10 / 119)
    bare = quality.quality_report(CODES, SIZES, decode=decode, pairs=pairs)["neighbourhood"]
    assert "vectors" not in bare
    assert bare["quantized"] == neighbourhood["quantized"]


def test_a_large_catalogue_is_judged_by_fewer_pairs(monkeypatch):
    monkeypatch.setattr(quality, "_COMPARISONS", 120 * 60)
    monkeypatch.setattr(quality, "_LEAST_PAIRS", 50)
    pairs = np.column_stack([np.arange(100), np.arange(100) + 1])

    def asked(items):
        codes = np.zeros((items, 1), int)
        report = quality.quality_report(codes, (1,), decode=lambda c: np.ones((1, 2)), pairs=pairs)
        assert report["behaviour"]["n_pairs"] == 100
        return report["neighbourhood"]["n_pairs"]

    assert asked(101) == 71
    assert asked(300) == 50  # no fewer


def test_the_deepest_label_on_request():
    paths = [["a", str(code)] for code in CODES[:, 0]]
    paths[0] = ["b", paths[0][1]]
    reports = [quality.quality_report(CODES, SIZES, categories=paths)]
    reports.append(quality.quality_report(CODES, SIZES, categories=paths, take="deepest"))
    assert [report["categories"]["n_categories"] for report in reports] == [2, 4]


def test_an_hourglass_is_measured():
    rows = np.arange(4096)
    narrow = np.where(rows % 256 < 192, 0, rows % 16)
    codes = np.column_stack([rows % 16, narrow, rows // 256])
    report = quality.quality_report(codes, (16, 16, 16))
    share = np.bincount(narrow) / 4096
    evenness = -(share * np.log(share)).sum() / math.log(16)
    assert report["hourglass"] == {
        "level": 1,
        "evenness": pytest.approx(evenness),
        "ends": pytest.approx(1.0),
        "dip": pytest.approx(1.0 - evenness),
    }
    assert "Level 1 is the waist of an hourglass" in report["advice"][0]
    turned = quality.quality_report(codes[:, [1, 0, 2]], (16, 16, 16))
    assert turned["hourglass"]["dip"] == pytest.approx(evenness - 1.0)
    assert not any("hourglass" in each for each in turned["advice"])
    assert "hourglass" not in quality.quality_report(codes[:, :2], (16, 16))
    # Three items cannot be uneven among 16 codes, and one code is as even as it can be.
    few = quality.quality_report(np.arange(3)[:, None].repeat(3, 1) * [1, 0, 1], (16, 1, 16))
    assert few["hourglass"]["dip"] == pytest.approx(0.0)


def advice_of(codes, sizes, vectors=None):
    return " ".join(quality.quality_report(codes, sizes, vectors=vectors)["advice"])


def test_advice_names_what_is_ill():
    rows = np.arange(1024)
    healthy = np.column_stack([rows % 32, rows // 32])
    assert advice_of(healthy, (32, 32)) == ""
    assert "Level 0 has collapsed: 1 of 32" in advice_of(healthy * [0, 1], (32, 32))
    skewed = np.where(rows < 900, 0, rows % 32)
    assert "Level 0 is skewed" in advice_of(np.column_stack([skewed, rows // 32]), (32, 32))
    assert "96.9% of the IDs are lost" in advice_of(healthy[:, :1], (32,))
    assert "bucket holds 512" in advice_of(np.repeat([[0], [1]], 512, 0), (2,))
    same = np.repeat(VECTORS[:2], 512, 0)
    assert "1022 of 1024 items have the vector" in advice_of(healthy, (32, 32), same)
    # A catalogue of three items cannot use 32 codes; that is no collapse.
    assert "collapsed" not in advice_of(np.array([[0], [1], [2]]), (32,))


def test_advice_on_categories():
    rows = np.arange(1024)
    codes = np.column_stack([rows % 32, rows // 32])
    strewn = [str(each) for each in GENERATOR.integers(0, 6, 1024)]
    report = quality.quality_report(codes, (32, 32), categories=strewn)
    assert "says next to nothing about the category" in report["advice"][0]
    for healthy in ([str(row % 32 // 8) for row in rows], ["one"] * 1024):
        assert quality.quality_report(codes, (32, 32), categories=healthy)["advice"] == []


def told(quantized, vectors, chance=0.01, pairs=(0.5, 0.03), n_pairs=1000):
    """Advice on a healthy index with these hit rates and shares of pairs."""
    rows = np.arange(1024)
    report = quality.quality_report(np.column_stack([rows % 32, rows // 32]), (32, 32))
    hits = {"quantized": quantized, "vectors": vectors, "chance": chance}
    report["neighbourhood"] = {
        name: {"hr@10": 0.0, "hr@100": value} for name, value in hits.items()
    }
    # The smaller K must not be what speaks: it would have no chance to lose.
    report["neighbourhood"]["chance"]["hr@10"] = chance / 10
    prefixes = [{"levels": 1, "pairs": pairs[0], "chance": pairs[1]}]
    report["behaviour"] = {"n_pairs": n_pairs, "prefixes": prefixes}
    return " ".join(advice(report))


def test_advice_on_behaviour():
    assert told(0.1, 0.15) == ""
    assert "Quantization loses the neighbourhoods" in told(0.07, 0.15)
    assert "HR@100 is 0.070, by the vectors themselves 0.150, by chance 0.010" in told(0.07, 0.15)
    assert "Even the vectors do not find" in told(0.01, 0.019)
    assert "Even the vectors" not in told(0.02, 0.021)
    # Nothing can be said of a catalogue that K nearly covers, nor by a handful of pairs.
    assert told(0.9, 0.9, chance=0.9) == ""
    assert told(0.07, 0.15, pairs=(0.03, 0.03), n_pairs=99) == ""
    blind = told(0.1, 0.15, pairs=(0.044, 0.03))
    assert "4.4% of the items taken one after the other share their first code" in blind
    assert "of any two items 3.0%" in blind
    assert told(0.1, 0.15, pairs=(0.046, 0.03)) == ""
