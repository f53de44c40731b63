import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest

from jaxrec.data.histories import Histories
from jaxrec.data.splits import LeaveOneOut
from jaxrec.evaluation.report import read_report
from jaxrec.files import file_hash, lock
from jaxrec.parallel import MeshShape
from jaxrec.pipeline.recommend import recommend_histories, recommend_users
from jaxrec.pipeline.run import differences, open_finished, run
from jaxrec.recipe import replace


@pytest.fixture(scope="module")
def opened(finished):
    return open_finished(finished)


def test_a_run_leaves_what_it_promises(finished):
    for name in (
        "recipe.json", "metrics.jsonl", "report.json", "report.html", "recommendations.parquet",
        "artefacts/tokens", "artefacts/histories", "checkpoints/0-supervised",
    ):  # fmt: skip
        assert (finished / name).exists(), name
    assert not list(finished.glob(".tmp-*"))
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40, 50, 60]
    assert [row["step"] for row in rows if "validation/ndcg@10" in row] == [30, 60]
    assert all(row["stage"] == 0 for row in rows)


def test_the_report_obeys_its_contract(finished):
    report = read_report(finished)
    rows = {(row["method"], row["level"], row["seen_masked"]): row for row in report["rows"]}
    assert len(rows) == 2 * (5 + 2)
    for masked in (True, False):
        item, sid = (rows["generator", level, masked]["metrics"] for level in ("item", "sid"))
        for name in ("recall@10", "ndcg@10"):
            assert sid[name] >= item[name] > 0
    assert report["protocol"]["seed"] == 0
    assert report["protocol"]["surrogate"] == "HashedTfidf for the text encoder"
    assert report["protocol"]["selected_on"] == "validation ndcg@10"


def test_the_metrics_follow_from_the_lists(finished):
    """A sceptic's check: recompute Recall@10 and NDCG@10 from the Parquet file in plain numpy."""
    lists = pl.read_parquet(finished / "recommendations.parquet")
    histories = Histories.load(finished / "artefacts/histories")
    split = LeaveOneOut()(histories)
    hits, gains = [], []
    for position in split.test:
        user = int(np.searchsorted(histories.offsets, position, side="right")) - 1
        mine = lists.filter(pl.col("user") == str(histories.users[user])).sort("rank")
        items = mine["item"].to_list()
        assert len(set(items)) == len(items)
        seen = set(histories.items[histories.item[histories.offsets[user] : position]])
        assert not seen & set(items)
        target = str(histories.items[histories.item[position]])
        place = items.index(target) + 1 if target in items else 0
        hits.append(0 < place <= 10)
        gains.append(1 / np.log2(place + 1) if 0 < place <= 10 else 0.0)
    row = next(
        row for row in read_report(finished)["rows"]
        if (row["method"], row["level"], row["seen_masked"]) == ("generator", "item", True)
    )  # fmt: skip
    assert row["metrics"]["recall@10"] == pytest.approx(np.mean(hits), abs=1e-9)
    assert row["metrics"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-9)


def test_running_again_changes_nothing(finished, small):
    before = {path: file_hash(path) for path in finished.rglob("*") if path.is_file()}
    run(small, runs=finished.parent)
    assert {path: file_hash(path) for path in finished.rglob("*") if path.is_file()} == before


def test_judging_again_gives_the_same_report(finished, small, tmp_path):
    copy = tmp_path / "small"
    shutil.copytree(finished, copy)
    run(small, runs=tmp_path, again=True)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (finished, copy)]
    for report in reports:
        for row in report["rows"]:
            row.pop("seconds")
    assert reports[0] == reports[1]


def test_another_recipe_is_refused_by_name(finished, small):
    with pytest.raises(ValueError, match=r"generator\.layers is 1 there and 2 here"):
        run(replace(small, "generator.layers", 2), runs=finished.parent)


def test_two_jobs_on_one_folder_are_refused(finished, small):
    with (
        lock(finished / ".lock", wait=False),
        pytest.raises(ValueError, match="another job is running"),
    ):
        run(small, runs=finished.parent)


def test_differences_are_named():
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}) == "a.b.1 is 2 there and 3 here"
    assert differences({"a": 1}, {"a": 1}) == ""
    assert differences({"a": 1}, {"a": 1, "b": None}) == "b exists only here, as None"


def test_a_moved_run_answers(finished, opened, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(finished, copy)
    moved = open_finished(copy)
    users = [str(user) for user in moved.data.histories.users[:3]]
    assert recommend_users(moved, users, count=5) == recommend_users(opened, users, count=5)


def test_answers_leave_out_what_was_seen(opened):
    histories = opened.data.histories
    user = str(histories.users[0])
    seen = {str(each) for each in histories.items[histories.item[histories.history(0)]]}
    (answer,) = recommend_users(opened, [user], count=10)
    assert [each.rank for each in answer.recommendations] == list(range(1, 11))
    assert not seen & {each.item for each in answer.recommendations}
    scores = [each.score for each in answer.recommendations]
    assert scores == sorted(scores, reverse=True)


def test_a_user_and_the_same_raw_history_get_the_same_answer(opened):
    histories = opened.data.histories
    items = [str(each) for each in histories.items[histories.item[histories.history(5)]]]
    (by_user,) = recommend_users(opened, [str(histories.users[5])], count=10)
    (by_history,) = recommend_histories(opened, [items], count=10)
    assert by_history.recommendations == by_user.recommendations


def test_an_empty_history_is_welcome(opened):
    (answer,) = recommend_histories(opened, [[]], count=10)
    assert len({each.item for each in answer.recommendations}) == 10


def test_unknown_items_are_left_out_and_named(opened):
    known = str(opened.data.histories.items[3])
    with_stranger, without = recommend_histories(opened, [[known, "no such"], [known]], count=5)
    assert with_stranger.unknown == ["no such"]
    assert with_stranger.recommendations == without.recommendations


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: recommend_users(run, ["nobody"], count=5), "does not know user.* nobody"),
        (lambda run: recommend_histories(run, [["x"]], count=5), "has none of the items x"),
        (lambda run: recommend_histories(run, [[]], count=0), "count=0 is not possible"),
        (lambda run: recommend_histories(run, [[]], count=999), "decodes 1 to 20 items"),
    ],
)
def test_bad_questions_get_clear_answers(opened, call, message):
    with pytest.raises(ValueError, match=message):
        call(opened)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it has no recipe\.json"):
        open_finished(tmp_path)


def test_a_damaged_artefact_is_refused(finished, tmp_path):
    copy = tmp_path / "small"
    shutil.copytree(finished, copy)
    (copy / "artefacts/histories/item.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match="does not hold what was published"):
        open_finished(copy)


def test_an_untrained_run_is_refused(small, tmp_path):
    folder = run(dataclasses.replace(small, name="only-ids"), runs=tmp_path, last="tokens")
    with pytest.raises(ValueError, match="is not trained yet"):
        open_finished(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mesh", MeshShape(data=3), "does not fit 8 device"),
        ("evaluation.rows", 12, r"evaluation\.rows gives 12 row"),
        ("stages.0.fit.microbatches", 8, r"stages\.0\.feed\.rows gives 4 row"),
        ("evaluation.cutoffs", (5, 50), r"asks for the first 50 places, and decoding\.k=20"),
    ],
)
def test_what_cannot_work_is_found_before_any_work(small, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        run(replace(small, field, value), runs=tmp_path)
    assert not list(tmp_path.iterdir())
