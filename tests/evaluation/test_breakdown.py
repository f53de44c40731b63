"""Metrics by group of cases, against a loop that anybody can check."""

import copy
import math

import numpy as np
import pytest

from jaxrec.evaluation.breakdown import (
    FEW,
    break_down,
    breakdown_entry,
    bucket_ends,
    check_breakdowns,
    make_buckets,
)
from jaxrec.evaluation.significance import bootstrap_mean

GENERATOR = np.random.default_rng(7)
RANKS = GENERATOR.integers(0, 25, 400)
KEYS = (GENERATOR.pareto(1.0, 400) * 6).astype(np.int64)
USERS = np.sort(GENERATOR.integers(0, 150, 400))


def by_hand(ranks, keys, users, low, high, metric):
    """The mean over users of one bucket, case by case."""
    per_user = {}
    for rank, key, user in zip(ranks.tolist(), keys.tolist(), users.tolist()):
        if key < low or (high is not None and key > high):
            continue
        hit = 1 <= rank <= 10
        value = {"recall@10": 1.0, "ndcg@10": 1 / math.log2(rank + 1) if hit else 0.0}[metric]
        per_user.setdefault(user, []).append(value if hit else 0.0)
    means = [sum(values) / len(values) for values in per_user.values()]
    return sum(map(len, per_user.values())), means


def test_means_and_intervals_equal_a_slow_loop():
    ends = bucket_ends(KEYS)
    buckets, _ = make_buckets(KEYS, ends, users=USERS)
    assert len(buckets) > 3
    told = break_down(RANKS, KEYS, ends, users=USERS, draws=200, seed=3)
    for bucket, metrics in zip(buckets, told, strict=True):
        for name in ("recall@10", "ndcg@10"):
            cases, means = by_hand(RANKS, KEYS, USERS, bucket.low, bucket.high, name)
            assert (bucket.cases, bucket.users) == (cases, len(means))
            found = metrics[name]
            assert found.mean == pytest.approx(sum(means) / len(means), abs=1e-12)
            wanted = bootstrap_mean(np.array(means), draws=200, seed=3)
            # Resamples are drawn over distinct rows of all metrics, so ends agree to sampling.
            assert found.low == pytest.approx(wanted.low, abs=0.05)
            assert found.high == pytest.approx(wanted.high, abs=0.05)
    assert sum(bucket.cases for bucket in buckets) == 400


def test_one_metric_has_the_very_interval_of_the_bootstrap():
    hits = ((RANKS > 0) & (RANKS <= 10)).astype(float)
    inside = (KEYS >= 4) & (KEYS <= 9)
    _, told, _ = break_down(RANKS, KEYS, (3, 9), metrics=("recall@10",), draws=100, seed=1)
    wanted = bootstrap_mean(hits[inside], draws=100, seed=1)
    assert told["recall@10"] == wanted


def test_without_users_every_case_counts_once():
    told = break_down(RANKS, KEYS, (3,), draws=20, seed=0)
    hits = (RANKS > 0) & (RANKS <= 10)
    assert told[0]["recall@10"].mean == pytest.approx(hits[KEYS <= 3].mean())
    assert told[1]["recall@10"].mean == pytest.approx(hits[KEYS > 3].mean())


@pytest.mark.parametrize(
    ("keys", "counts", "ends"),
    [
        ([], [], ()),
        ([0], [9], ()),  # only empty histories: one bucket
        ([4], [100], ()),  # all alike: one bucket
        ([0, 4], [1, 100], (0,)),  # key 0 stands alone, however rare
        ([1, 2, 3, 4, 5], [60] * 5, (1, 2, 3)),  # 60 >= 300 / 6; 4 and 5 lie below one end
        ([1, 2], [FEW, FEW - 16], ()),  # a rest of 14 is less than half of 30 and joins
        ([1, 2], [FEW, FEW - 15], (1,)),
        ([1, 2], [FEW - 1, 500], ()),  # 29 cases close no bucket
        ([8, 9, 1000], [40, 40, 40], (10,)),
    ],
)
def test_the_rule_of_the_ends(keys, counts, ends):
    assert bucket_ends(np.repeat(np.array(keys, np.int64), counts)) == ends


def test_every_bucket_but_zero_and_the_last_is_large_enough():
    for seed in range(20):
        keys = np.random.default_rng(seed).poisson(3 + 5 * seed, 300 + 90 * seed)
        buckets, bucket = make_buckets(keys, bucket_ends(keys))
        least = max((keys > 0).sum() / 6, FEW)
        assert np.bincount(bucket, minlength=len(buckets)).tolist() == [b.cases for b in buckets]
        for each in buckets[:-1]:
            assert each.high == 0 or each.cases >= least
        assert buckets[-1].cases >= least / 2 or len(buckets) == 1 + (buckets[0].high == 0)


def test_labels_say_what_a_bucket_holds():
    buckets, bucket = make_buckets(np.array([0, 1, 5, 6, 1200]), (0, 1, 5, 1000), zero="0 (cold)")
    assert [b.label for b in buckets] == ["0 (cold)", "1", "2-5", "6-1,000", "1,001+"]
    assert bucket.tolist() == [0, 1, 2, 3, 4]
    assert all(b.few for b in buckets)
    assert [b.label for b in make_buckets(np.array([2, 9]), (5,))[0]] == ["1-5", "6+"]
    assert [b.label for b in make_buckets(np.array([0, 9]), (5,))[0]] == ["0-5", "6+"]
    assert [b.label for b in make_buckets(np.zeros(3, int), (), zero="none")[0]] == ["none"]


def test_an_empty_bucket_has_no_mean():
    told = break_down(np.array([1, 2]), np.array([1, 9]), (3, 5), draws=10, seed=0)
    assert told[1] == {"recall@10": None, "ndcg@10": None}
    assert told[0]["recall@10"].mean == told[2]["recall@10"].mean == 1.0


def test_bad_questions_are_refused():
    keys = np.array([1, 2])
    with pytest.raises(ValueError, match="counts from 0, got -1"):
        bucket_ends(np.array([-1]))
    with pytest.raises(ValueError, match="counts from 0, got -1"):
        make_buckets(np.array([-1]), (3,))
    with pytest.raises(ValueError, match=r"counts that rise, got \(5, 5\)"):
        make_buckets(keys, (5, 5))
    for metric in ("auc@10", "recall@0", "recall"):
        with pytest.raises(ValueError, match=r"recall@K, ndcg@K or mrr@K"):
            break_down(keys, keys, (), metrics=(metric,), seed=0)


@pytest.fixture
def entry():
    return breakdown_entry(
        "target popularity",
        {"popularity": RANKS, "generator": RANKS[::-1].copy()},
        KEYS,
        seen_masked=True,
        users=USERS,
        draws=20,
        seed=0,
    )


def test_an_entry_is_what_the_functions_say(entry):
    assert entry["buckets"][0]["label"] == "0 (cold)"
    told = break_down(RANKS, KEYS, bucket_ends(KEYS), users=USERS, draws=20, seed=0)
    row = entry["rows"][0]
    assert row["method"] == "popularity"
    assert row["metrics"]["ndcg@10"] == [each["ndcg@10"].mean for each in told]
    assert row["intervals"]["ndcg@10"][1] == [told[1]["ndcg@10"].low, told[1]["ndcg@10"].high]
    check_breakdowns([entry])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("by"), "'by', 'buckets' and 'rows'"),
        (lambda e: e.update(buckets=[]), "at least one"),
        (lambda e: e.pop("seen_masked"), "'level' or 'seen_masked'"),
        (lambda e: e["buckets"][0].pop("few"), "lacks 'few'"),
        (lambda e: e["buckets"][0].update(high="many"), "lacks 'high', or it is not allowed"),
        (lambda e: e["rows"][0].pop("method"), "no 'method'"),
        (lambda e: e["rows"][0].update(metrics={}), "with a metric at least"),
        (lambda e: e["rows"][0]["intervals"].pop("ndcg@10"), "every metric has its intervals"),
        (lambda e: e["rows"][0]["metrics"]["ndcg@10"].pop(), "one entry a bucket"),
        (lambda e: e["rows"][0]["metrics"].update({"ndcg@10": 0.5}), "one entry a bucket"),
        (lambda e: e["rows"][0]["metrics"]["ndcg@10"].__setitem__(1, None), "ndcg@10 of bucket"),
        (lambda e: e["rows"][0]["intervals"]["ndcg@10"].__setitem__(1, [0.1]), "ndcg@10 of bucket"),
        (
            lambda e: e["rows"][0]["metrics"]["ndcg@10"].__setitem__(1, float("inf")),
            "ndcg@10 of bucket",
        ),
    ],
)
def test_broken_entries_are_refused(entry, change, message):
    broken = copy.deepcopy(entry)
    change(broken)
    with pytest.raises(ValueError, match=message):
        check_breakdowns([broken])


def test_a_list_is_wanted():
    with pytest.raises(ValueError, match="is a list, got dict"):
        check_breakdowns({})
