"""The machine contract of report.json, and the verdict in words."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrec.evaluation.metrics import rank_metrics
from jaxrec.evaluation.report import (
    Row,
    compare_ranks,
    read_report,
    row_from_ranks,
    text_table,
    verdict,
    write_report,
)

CONTRACT = {"method", "level", "split", "tie_policy", "seen_masked", "seed", "metrics", "seconds"}


@pytest.fixture
def report(tmp_path, protocol, parts):
    rows, comparisons = parts
    write_report(tmp_path, protocol, rows, {"parameters": 1234}, comparisons=comparisons)
    return read_report(tmp_path)


def test_the_file_keeps_the_contract(tmp_path, protocol, parts, report):
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == report
    assert content["parameters"] == 1234
    assert content["protocol"] == protocol.to_dict()
    assert {"dataset", "split", "tie_policy", "seen_masked", "seed"} <= set(content["protocol"])
    for row, given in zip(content["rows"], parts[0], strict=True):
        assert set(row) >= CONTRACT
        assert row["metrics"] == dict(given.metrics)
        assert row["metrics"]["recall@10"] == given.metrics["recall@10"]
        low, high = row["intervals"]["ndcg@10"]
        assert low <= row["metrics"]["ndcg@10"] <= high
        assert "gini@10" not in row["intervals"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_equal_results_give_equal_bytes(tmp_path, protocol, parts):
    for name in ("a", "b"):
        write_report(tmp_path / name, protocol, parts[0], comparisons=parts[1])
    a, b = ((tmp_path / name / "report.json").read_bytes() for name in ("a", "b"))
    assert a == b


def test_rows_hold_the_plain_metrics(protocol):
    ranks = np.array([1, 0, 12, 3, 3])
    row = row_from_ranks("m", ranks, protocol, seen_masked=False, seconds=0.0, draws=50)
    assert row.metrics == pytest.approx(rank_metrics(ranks))
    users = np.array([4, 4, 4, 4, 8])
    row = row_from_ranks(
        "m", ranks, protocol, seen_masked=False, seconds=0.0, draws=50, users=users
    )
    assert row.metrics["recall@10"] == pytest.approx((2 / 4 + 1) / 2)


def test_verdict_calls_losing_losing(report):
    sentence = verdict(report)
    value = report["rows"][2]["metrics"]["recall@10"]
    assert sentence.startswith(f"generator has Recall@10 {value:.4f}: it is ahead of popularity")
    assert "and loses to transitions (1.0000; difference -" in sentence
    assert "95 % interval -" in sentence
    for comparison in report["comparisons"]:
        comparison["verdict"] = "undecided"
    assert verdict(report).count("cannot be told apart from") == 2
    assert "No generator" in verdict({**report, "comparisons": []})


def test_comparisons_are_paired_differences_of_the_metric():
    ours, theirs = np.array([1] * 30 + [0] * 10), np.array([2] * 10 + [0] * 30)
    told = compare_ranks("a", ours, "b", theirs, seen_masked=True, seed=0, metric="recall@1")
    assert (told.difference, told.verdict) == (0.75, "ahead")
    assert told.low < 0.75 < told.high
    same = compare_ranks("a", ours, "b", ours, seen_masked=True, seed=0)
    assert (same.difference, same.p_value, same.verdict) == (0.0, 1.0, "undecided")
    with pytest.raises(ValueError, match="recall@K"):
        compare_ranks("a", ours, "b", ours, seen_masked=True, seed=0, metric="auc")


def test_text_table_shows_every_row(report):
    lines = text_table(report, metrics=("recall@10", "map@10")).splitlines()
    assert len(lines) == 3 + len(report["rows"])
    assert lines[3].split()[:3] == ["popularity", "item", "masked"]
    assert lines[3].split()[-2:] == ["-", "1.5"]
    assert lines[-1].split()[2] == "kept"


def test_broken_reports_are_refused(tmp_path, protocol, parts, report):
    path = tmp_path / "report.json"

    def refused(change, message):
        broken = json.loads(json.dumps(report))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message) as error:
            read_report(tmp_path)
        assert "report.json" in str(error.value)

    refused(lambda r: r.pop("rows"), "'protocol' and 'rows'")
    refused(lambda r: r.update(rows=[]), "at least one row")
    refused(lambda r: r["rows"][0].pop("seconds"), "seconds=None")
    refused(lambda r: r["rows"][0].update(level="list"), "level='list'")
    refused(lambda r: r["rows"][0].update(metrics={}), "no metric")
    refused(lambda r: r["protocol"].pop("dataset"), "lacks")
    refused(lambda r: r["comparisons"][0].pop("low"), "low")
    path.write_text('{"protocol": ')
    with pytest.raises(ValueError, match="truncated or corrupted"):
        read_report(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_report(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=r"may not replace \['rows'\]"):
        write_report(tmp_path, protocol, parts[0], {"rows": []})


def test_rows_refuse_what_is_not_finite(parts):
    row = parts[0][0]
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(row, metrics={"recall@10": float("nan")}, intervals={})
    with pytest.raises(ValueError, match="intervals without metrics"):
        dataclasses.replace(row, metrics={"recall@1": 0.5})
    assert isinstance(row, Row)
