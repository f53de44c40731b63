"""What a run's judgement leaves: breakdowns and ranks that agree with the rows, and one page."""

import json
import re
import shutil

import numpy as np
import pytest

from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut
from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.ranks import fingerprint_cases, read_ranks
from jaxrec.evaluation.report import read_report
from jaxrec.pipeline.compare import open_runs


@pytest.fixture(scope="module")
def report(finished):
    return read_report(finished)


@pytest.fixture(scope="module")
def ranks(finished, report):
    return read_ranks(finished, report["ranks"]["fingerprint"])


def test_the_kept_ranks_give_every_row(report, ranks):
    assert len(ranks.rows) == len(report["rows"]) == 14
    for row in report["rows"]:
        mine = ranks.of(row["method"], row["level"], row["seen_masked"])
        wanted = {name: row["metrics"][name] for name in rank_metrics(mine, (1, 5, 10, 20))}
        assert rank_metrics(mine, (1, 5, 10, 20)) == pytest.approx(wanted, abs=1e-12)


def test_cases_are_those_of_the_split(finished, report, ranks):
    histories = Histories.load(finished / "artefacts/histories")
    positions = LeaveOneOut()(histories).test
    users = histories.user_of(positions)
    cases = [
        (
            str(histories.users[user]),
            str(histories.items[histories.item[position]]),
            int(position - histories.offsets[user]),
        )
        for user, position in zip(users, positions)
    ]
    assert fingerprint_cases(cases) == ranks.cases == report["ranks"]["cases"]
    np.testing.assert_array_equal(ranks.user, users)


@pytest.mark.parametrize("number", [0, 1])
def test_buckets_are_parts_of_the_whole(finished, report, ranks, number):
    """Bucket by bucket in plain loops; and weighted by cases they give the row of the report."""
    histories = Histories.load(finished / "artefacts/histories")
    split = LeaveOneOut()(histories)
    users = histories.user_of(split.test)
    counts = np.zeros(histories.num_items, int)
    for user in range(histories.num_users):
        for position in range(histories.offsets[user], split.train_end[user]):
            counts[histories.item[position]] += 1
    lengths = split.test - histories.offsets[users]
    keys = [lengths, counts[histories.item[split.test]]][number]
    entry = report["breakdowns"][number]
    assert entry["by"] == ["history length", "target popularity"][number]
    assert (entry["level"], entry["seen_masked"]) == ("item", True)
    assert len(entry["rows"]) == 6
    cases = [bucket["cases"] for bucket in entry["buckets"]]
    assert sum(cases) == len(split.test)
    assert len(cases) > 2
    for row in entry["rows"]:
        mine = ranks.of(row["method"], "item", True)
        for bucket, mean in zip(entry["buckets"], row["metrics"]["recall@10"], strict=True):
            high = bucket["high"] if bucket["high"] is not None else 10**9
            hits = [0 < rank <= 10 for rank, key in zip(mine, keys) if bucket["low"] <= key <= high]
            assert len(hits) == bucket["cases"]
            assert mean == pytest.approx(sum(hits) / len(hits))
        whole = next(
            each["metrics"]["recall@10"] for each in report["rows"]
            if (each["method"], each["level"], each["seen_masked"]) == (row["method"], "item", True)
        )  # fmt: skip
        assert np.dot(cases, row["metrics"]["recall@10"]) / sum(cases) == pytest.approx(whole)


def test_times_stand_under_seconds_only(finished):
    text = (finished / "report.json").read_text()
    for entry in json.loads(text)["breakdowns"]:
        assert "seconds" not in json.dumps(entry)


def test_the_page_needs_nothing_from_outside(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|<script|<link|<iframe|<object", page)
    assert not re.search(r"url\((?!#)", page)
    for tag in re.findall(r"<[a-zA-Z][^>]*>", page):
        for name, value in re.findall(r"""([\w:-]+)=["']([^"']*)""", tag):
            assert not re.match(r"\s*(https?:|//)", value), tag[:200]
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), tag[:200]
    for told in ("For whom it works", "codes used", "items, coloured by first code"):
        assert told in page


def test_a_run_can_be_compared(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    first, second = open_runs([finished, tmp_path / "copy"])
    assert first.cases == second.cases
    assert first.recipe["class"] == "recipe:Recipe"
