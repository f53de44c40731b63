"""Runs side by side: who may be ranked with whom, and what is said about it."""

import dataclasses
import re

import numpy as np
import pytest

from jaxrec.evaluation.compare import (
    BINDING,
    TASK,
    RunResult,
    compare_runs,
    group_runs,
    recipe_differences,
)
from jaxrec.evaluation.compare_pairs import holm
from jaxrec.evaluation.compare_views import as_html, as_markdown, as_text, parts_of
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranks import CaseRanks
from jaxrec.evaluation.report import compare_ranks, row_from_ranks

PROTOCOL = Protocol(
    dataset="toy", num_users=40, num_items=9, num_events=400, num_cases=40, history_cap=50,
    decoder="BeamSearch", beam_width=20, selected_on="validation ndcg@10", seed=3,
)  # fmt: skip
POPULAR = np.array([1, 0, 12, 0] * 10)
USERS = np.arange(40, dtype=np.int32)


def run_result(
    name, generator, protocol=PROTOCOL, *, cases="same", seconds=1.0, recipe=None,
    method="generator", stage=None,
):  # fmt: skip
    """A run with one baseline and one trained method whose ranks are given."""
    ranks = {"popularity": POPULAR, method: np.asarray(generator)}
    rows = [
        row_from_ranks(
            row, mine, protocol, seen_masked=masked, seconds=seconds, cutoffs=(1, 10), draws=50,
            more_metrics={"gini@10": 0.5},
        )
        for masked in (True, False)
        for row, mine in ranks.items()
    ]  # fmt: skip
    comparison = compare_ranks(
        method, ranks[method], "popularity", POPULAR, seen_masked=True, seed=0, draws=50
    )
    report = {
        "protocol": protocol.to_dict(),
        "rows": [row.to_dict() for row in rows],
        "comparisons": [dataclasses.asdict(comparison)],
        "training": {
            "parameters": 1200,
            "stages": [{"last_step": 60, "seconds": 2.5} | (stage or {})],
        },
    }
    kept = CaseRanks(
        cases or "",
        USERS,
        tuple((row, "item", masked) for masked in (True, False) for row in ranks),
        np.stack([*ranks.values(), *ranks.values()]).astype(np.int32),
    )
    recipe = {"class": "recipe:Recipe", "name": name, "generator": {"width": 32}} | (recipe or {})
    return RunResult(name, report, recipe, kept if cases else None)


GOOD = [1] * 30 + [0] * 10
WEAK = [2] * 10 + [0] * 30


@pytest.fixture(scope="module")
def two():
    return [
        run_result("weak", WEAK, seconds=2.0),
        run_result("good", GOOD, recipe={"generator": {"width": 64}}),
    ]


def test_equal_rules_are_one_group_and_ranked_together(two):
    compared = compare_runs(two, draws=50)
    assert [(g["name"], g["runs"], g["differs"]) for g in compared["groups"]] == [
        ("A", ["weak", "good"], {})
    ]
    assert compared["differences"] == {}
    rows = [row for row in compared["rows"] if row["seen_masked"]]
    assert [(r["method"], r["runs"], r["place"], r["metrics"]["recall@10"]) for r in rows] == [
        ("popularity", ["weak", "good"], 2, 0.25),
        ("generator", ["weak"], 2, 0.25),  # equal numbers share a place
        ("generator", ["good"], 1, 0.75),
    ]
    assert rows[0]["seconds"] == [2.0, 1.0]
    assert compared["recipes"] == {"generator.width": {"weak": 32, "good": 64}}
    assert compared["costs"]["weak"] == {
        "parameters": 1200, "steps": 60, "seconds": 2.5,
        **dict.fromkeys(("flops", "validations", "validation_cases", "validated")),
    }  # fmt: skip


def test_pairs_are_the_paired_differences_against_the_best(two):
    (paired,) = compare_runs(two, draws=50, seed=9, against="best")["paired"]
    assert (paired["best"], paired["metric"], paired["reason"]) == (
        "generator of good", "recall@10", None,
    )  # fmt: skip
    wanted = compare_ranks(
        "generator of weak", np.array(WEAK), "generator of good", np.array(GOOD),
        seen_masked=True, seed=9, draws=50, users=USERS,
    )  # fmt: skip
    against = {each["method"]: each for each in paired["against"]}
    assert set(against) == {"popularity", "generator of weak"}
    found = dict(against["generator of weak"])
    assert found.pop("p_holm") == max(
        2 * min(each["p_value"] for each in paired["against"]), found["p_value"]
    )
    assert found == dataclasses.asdict(wanted)
    assert (found["difference"], found["verdict"]) == (-0.5, "behind")


@pytest.mark.parametrize("field", BINDING)
def test_any_other_rule_forbids_a_common_ranking(field):
    others = {
        "dataset": "log", "split": "temporal(0.1, 0.1)", "part": "validation", "level": "sid",
        "tie_policy": "shuffle:0", "candidates": "sampled:99", "seen_masked": False,
        "fit_on": "everything", "decoder": "exact scoring", "history_cap": None, "beam_width": 50,
    }  # fmt: skip
    value = others.get(field, 7)
    changed = dataclasses.replace(PROTOCOL, **{field: value})
    runs = [run_result("here", WEAK), run_result("there", GOOD, changed)]
    compared = compare_runs(runs, draws=20)
    assert [group["runs"] for group in compared["groups"]] == [["here"], ["there"]]
    assert compared["differences"][field] == {"A": getattr(PROTOCOL, field), "B": value}
    for row in compared["rows"]:
        among = [
            other["metrics"]["recall@10"]
            for other in compared["rows"]
            if (other["group"], other["seen_masked"]) == (row["group"], row["seen_masked"])
        ]
        assert len(among) == 2
        assert row["place"] == 1 + sum(each > row["metrics"]["recall@10"] for each in among)
    assert all("there" not in each["method"] for each in compared["paired"][0]["against"])
    text = as_text(parts_of(compared))
    assert text.startswith("!!! NOT COMPARABLE")
    assert f"!!! {field}: A has" in text
    assert "-- Group B: not comparable with other groups --" in text


def test_seeds_and_surrogates_are_told_and_forbid_nothing(two):
    other = run_result("seed4", GOOD, dataclasses.replace(PROTOCOL, seed=4, surrogate="TF-IDF"))
    compared = compare_runs([*two, other], draws=20)
    (group,) = compared["groups"]
    assert group["differs"]["seed"] == {"weak": 3, "good": 3, "seed4": 4}
    text = " ".join(as_text(parts_of(compared)).split())
    assert "Differs inside the group: seed (weak 3, good 3, seed4 4)." in text
    assert "surrogate (weak -, good -, seed4 TF-IDF)." in text


def test_other_cases_under_one_protocol_are_not_comparable():
    runs = [run_result("a", WEAK, cases="x" * 20), run_result("b", GOOD, cases="y" * 20)]
    compared = compare_runs(runs, draws=20)
    assert compared["differences"] == {"test cases": {"A": "x" * 12, "B": "y" * 12}}


def test_unknown_cases_join_their_protocol_and_are_not_paired():
    runs = [run_result("a", WEAK), run_result("old", GOOD, cases=None), run_result("b", GOOD)]
    assert {name: len(group) for name, group in group_runs(runs).items()} == {"A": 3}
    (paired,) = compare_runs(runs, draws=20)["paired"]
    assert paired["best"] is None
    assert paired["reason"].startswith("old kept no ranks")
    assert "Not paired: old kept no ranks" in as_text(parts_of(compare_runs(runs, draws=20)))


def test_a_row_without_the_metric_has_no_place(two):
    weak = two[0]
    rows = [dict(row, metrics=dict(row["metrics"])) for row in weak.report["rows"]]
    rows[0]["metrics"].pop("recall@10")
    changed = dataclasses.replace(weak, report={**weak.report, "rows": rows})
    compared = compare_runs([changed, two[1]], draws=20)
    assert [row["place"] for row in compared["rows"]][:4] == [None, 2, 2, 1]
    last = as_text(parts_of(compared)).split("Against")[0].strip().splitlines()[-1]
    assert re.match(r"- +popularity of weak +- ", last.strip())


def test_holm_closed_form():
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    # Sorted .01 .02 .03 .9 times 4 3 2 1, never falling, at most 1.
    assert holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_recipes_are_compared_leaf_by_leaf():
    one = {"name": "a", "stages": [{"class": "x", "steps": 3}], "cuts": [1, 5], "same": {}}
    two = {"name": "b", "stages": [{"class": "y", "rows": 2}], "cuts": [1], "same": {}}
    assert recipe_differences({"a": one, "b": two}) == {
        "stages.0.class": {"a": "x", "b": "y"},
        "stages.0.steps": {"a": 3, "b": None},
        "cuts": {"a": [1, 5], "b": [1]},
        "stages.0.rows": {"a": None, "b": 2},
    }


def test_what_cannot_be_compared_is_refused(two):
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        compare_runs(two[:1])
    with pytest.raises(ValueError, match="different names, got weak, weak"):
        compare_runs([two[0], two[0]])
    with pytest.raises(ValueError, match=r"no run has the metric\(s\) auc; choose from gini@10, m"):
        compare_runs(two, metrics=("recall@10", "auc"))
    with pytest.raises(ValueError, match=r"the first metric ranks.*got gini@10"):
        compare_runs(two, metrics=("gini@10",))
    with pytest.raises(ValueError, match="got none"):
        compare_runs(two, metrics=())
    with pytest.raises(ValueError, match="against='worst'; choose one of baseline, best"):
        compare_runs(two, against="worst")


GOLDEN = """\
Metrics
  Group A (weak, good): toy, 40 test cases, leave-one-out, ties file, candidates full, seen items
  masked, history of the last 50, BeamSearch of width 20, hits by item.
  Ranked by Recall@10 inside a group; the best of a column has a star or is bold. Beside or below
  a number stands its 95 % bootstrap interval over users. One run is one seed: the intervals do
  not cover what another seed would give.
  #  method                            Recall@10                     MRR@1     seconds
  1  generator of good  0.7500* [0.1250, 0.8750]  0.7500* [0.1250, 0.8750]         1.0
  2  popularity          0.2500 [0.1250, 0.8750]   0.2500 [0.1250, 0.8750]  1.0 to 2.0
  2  generator of weak   0.2500 [0.1250, 0.8750]   0.0000 [0.1250, 0.8750]         2.0

Against the best
  generator of good has the best Recall@10 (seen items masked, hits by item). Paired over the same
  users; p by random sign flips, then corrected after Holm for the number of lines. The best was
  chosen by these very numbers, which flatters it.
  method                             difference       p  p (Holm)  verdict
  popularity         -0.5000 [-0.7500, -0.2500]  0.0010    0.0020   behind
  generator of weak  -0.5000 [-0.7500, -0.2500]  0.0010    0.0020   behind

Recipes differ in
  field            weak  good
  generator.width  32    64

Costs
  run   parameters  steps  training seconds
  weak       1,200     60               2.5
  good       1,200     60               2.5
"""


def test_golden_text(two):
    compared = compare_runs(two, metrics=("recall@10", "mrr@1"), draws=50, against="best")
    # What a bootstrap draws may change with numpy; how it is printed may not.
    for row in compared["rows"]:
        row["intervals"] = {name: [0.125, 0.875] for name in row["intervals"]}
    for each in compared["paired"][0]["against"]:
        each.update(low=-0.75, high=-0.25, p_value=0.001, p_holm=0.002)
    assert as_text(parts_of(compared)) == GOLDEN


GOLDEN_MARKDOWN = """\
## Recipes differ in

| field | weak | good |
| :-- | :-- | :-- |
| generator.width | 32 | 64 |

## Costs

| run | parameters | steps | training seconds |
| :-- | --: | --: | --: |
| weak | 1,200 | 60 | 2.5 |
| good | 1,200 | 60 | 2.5 |
"""


def test_markdown_golden_text(two):
    told = as_markdown(parts_of(compare_runs(two, draws=50)))
    assert told.endswith(GOLDEN_MARKDOWN)
    assert "| 1 | generator of good | **0.7500** [" in told
    assert "| # | method | Recall@10 | NDCG@10 | seconds |\n| :-- | :-- | --: | --: | --: |" in told


def test_every_row_adds_level_and_masking(two):
    compared = compare_runs(two, draws=20)
    text = as_text(parts_of(compared, every_row=True))
    assert len(re.findall(r"generator of good +item +(masked|kept) ", text)) == 2
    assert "kept " not in as_text(parts_of(compared)).split("Against")[0].split("seconds\n")[1]


def test_markdown_and_page_escape_names():
    evil = "<b>|x|_"
    runs = [run_result(evil, WEAK), run_result("good", GOOD)]
    parts = parts_of(compare_runs(runs, draws=20))
    assert "generator of \\<b>\\|x\\|\\_" in as_markdown(parts)
    page = as_html(parts, title=evil)
    assert "<b>|x|" not in page
    assert "&lt;b&gt;|x|_" in page


def test_the_page_needs_nothing_from_outside(two):
    changed = dataclasses.replace(PROTOCOL, tie_policy="item")
    parts = parts_of(compare_runs([*two, run_result("tied", GOOD, changed)], draws=20))
    page = as_html(parts, title="t")
    assert "<div class='warning'><b>NOT COMPARABLE</b>" in page
    assert page.index("NOT COMPARABLE") < page.index("0.7500")
    assert "<td><b>0.7500</b><small>" in page
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<link", page)
    assert page.count("<table") == page.count("<div class='wide'><table")
    # Numbers of different rules share no picture: methods by name and by cost, for each group.
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert [("Group A" in each, "Group B" in each) for each in pictures] == [
        (True, False), (True, False), (False, True), (False, True),
    ]  # fmt: skip


# 12 of 40 found at rank 1: ahead of popularity (10 of 40 within 10), behind GOOD.
FAIR = [1] * 12 + [0] * 28


def test_pairs_are_made_with_the_best_baseline_and_a_retriever_is_one():
    """Differences, p-values and Holm's correction by hand: users that differ are few enough for
    the exact sign-flip test."""
    runs = [
        run_result("weak", WEAK),
        run_result("good", GOOD),
        run_result("bar", FAIR, method="retriever"),
    ]
    (paired,) = compare_runs(runs, draws=200)["paired"]
    assert (paired["rule"], paired["best"]) == ("baseline", "retriever of bar")
    found = {each["method"]: each for each in paired["against"]}
    assert set(found) == {"popularity", "generator of weak", "generator of good"}
    hits = {name: np.array(ranks) > 0 for name, ranks in (("w", WEAK), ("g", GOOD), ("b", FAIR))}
    hits["p"] = (POPULAR > 0) & (POPULAR <= 10)
    for name, key in (("generator of weak", "w"), ("generator of good", "g"), ("popularity", "p")):
        gap = hits[key].astype(float) - hits["b"]
        assert found[name]["difference"] == pytest.approx(gap.mean())
    assert found["generator of good"]["difference"] == pytest.approx(18 / 40)
    assert found["generator of good"]["verdict"] == "ahead"
    # Two users of one sign: p = 2 * 2**-2, times the number of hypotheses not yet rejected.
    assert found["generator of weak"]["p_value"] == pytest.approx(0.5)
    ordered = sorted(each["p_value"] for each in paired["against"])
    want = np.minimum(np.maximum.accumulate([3 * ordered[0], 2 * ordered[1], ordered[2]]), 1.0)
    assert sorted(each["p_holm"] for each in paired["against"]) == pytest.approx(want)
    text = as_text(parts_of(compare_runs(runs, draws=200)))
    assert "Against the best baseline" in text
    assert "retriever of bar has the best Recall@10 of the rows that are no" in text


def test_without_a_retriever_the_best_baseline_is_a_counter(two):
    (paired,) = compare_runs(two, draws=20)["paired"]
    assert paired["best"] == "popularity"
    verdicts = {each["method"]: each["verdict"] for each in paired["against"]}
    assert verdicts == {"generator of weak": "undecided", "generator of good": "ahead"}


def test_systems_that_read_and_answer_differently_are_ranked_as_systems():
    other = dataclasses.replace(PROTOCOL, decoder="InnerProduct", beam_width=None, history_cap=20)
    runs = [run_result("good", GOOD), run_result("bar", FAIR, other, method="retriever")]
    apart = compare_runs(runs, draws=20)
    assert len(apart["groups"]) == 2
    assert "`--systems` takes that as a part" in " ".join(as_text(parts_of(apart)).split())
    together = compare_runs(runs, draws=20, binding=TASK)
    (group,) = together["groups"]
    assert group["differs"]["decoder"] == {"good": "BeamSearch", "bar": "InnerProduct"}
    assert together["paired"][0]["best"] == "retriever of bar"
    text = " ".join(as_text(parts_of(together)).split())
    assert "seen items masked, hits by item. Differs inside the group" in text
    assert "history_cap (good 50, bar 20)" in text
    renamed = [run_result("good", GOOD), run_result("log", FAIR, dataclasses.replace(
        other, dataset="log"), method="retriever")]  # fmt: skip
    assert len(compare_runs(renamed, draws=20, binding=TASK)["groups"]) == 2


def test_budgets_are_told():
    looks = {"flops": 2.5e12, "validations": 6, "validation_cases": 500}
    runs = [run_result("a", WEAK, stage=looks), run_result("b", GOOD, stage=looks)]
    compared = compare_runs(runs, draws=20)
    assert compared["costs"]["a"] == {
        "parameters": 1200, "steps": 60, "seconds": 2.5, "flops": 2.5e12, "validations": 6,
        "validation_cases": 500, "validated": 3000,
    }  # fmt: skip
    text = as_text(parts_of(compared))
    assert "Validation budgets are equal: each checkpoint was chosen by 3,000 answered" in text
    assert re.search(r"a +1,200 +60 +2\.5 +2\.5e\+12 +6 x 500\n", text)
    more = run_result("more", GOOD, stage=looks | {"validations": 60})
    text = " ".join(as_text(parts_of(compare_runs([*runs, more], draws=20))).split())
    assert "Validation budgets differ: from 3,000 answered cases (a) to 30,000 (more)" in text
    old = run_result("old", GOOD)
    text = as_text(parts_of(compare_runs([*runs, old], draws=20)))
    assert "Validation budgets are not known for old." in text


def test_pictures_hold_every_method_and_its_cost():
    looks = {"flops": 2.5e12, "validations": 6, "validation_cases": 500}
    runs = [
        run_result("small", WEAK, stage=looks),
        run_result("large", GOOD, stage=looks | {"flops": 4e14}),
        run_result("bar", FAIR, method="retriever", stage=looks | {"flops": 6e13}),
    ]
    page = as_html(parts_of(compare_runs(runs, draws=20)), title="t")
    dots, prices = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for name in ("popularity", "generator of small", "generator of large", "retriever of bar"):
        assert f">{name}</text>" in dots
        assert f">{name}</text>" in prices
    assert ">Recall@10</text>" in dots
    assert ">NDCG@10</text>" in dots
    assert ">training FLOPs (logarithmic)</text>" in prices
    assert ">1e13</text>" in prices
    assert "currentColor" in dots
    told = as_html(parts_of(compare_runs([runs[0], run_result("old", GOOD)], draws=20)), title="t")
    assert ">training seconds (logarithmic)</text>" in told
