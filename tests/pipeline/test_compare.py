"""`jaxrec compare` from folders to output, and every way in which a folder can be wrong."""

import json
import shutil

import numpy as np
import pytest

from jaxrec.cli import main
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.ranks import CaseRanks, write_ranks
from jaxrec.evaluation.report import compare_ranks, row_from_ranks, write_report
from jaxrec.files import write_json
from jaxrec.pipeline.compare import open_runs, run_names

PROTOCOL = Protocol(dataset="toy", num_users=40, num_items=9, num_events=400, num_cases=40)
POPULAR = np.array([1, 0, 12, 0] * 10)


def make_run(folder, generator, protocol=PROTOCOL, width=32):
    """A finished run as it lies on disk, without its artefacts."""
    found = {"popularity": POPULAR, "generator": np.asarray(generator)}
    rows = [
        row_from_ranks(name, ranks, protocol, seen_masked=True, seconds=0.5, draws=50)
        for name, ranks in found.items()
    ]
    comparison = compare_ranks(
        "generator", found["generator"], "popularity", POPULAR, seen_masked=True, seed=0, draws=50
    )
    ranks = CaseRanks(
        "same",
        np.arange(40, dtype=np.int32),
        tuple((name, "item", True) for name in found),
        np.stack(list(found.values())).astype(np.int32),
    )
    entry = {"cases": ranks.cases, "fingerprint": ranks.fingerprint}
    extra = {"ranks": {"file": write_ranks(folder, ranks).name, **entry}}
    write_json(folder / "recipe.json", {"class": "recipe:Recipe", "generator": {"width": width}})
    write_report(folder, protocol, rows, extra, comparisons=[comparison])
    return folder


@pytest.fixture
def good(tmp_path):
    return make_run(tmp_path / "good", [1] * 30 + [0] * 10)


@pytest.fixture
def weak(tmp_path):
    return make_run(tmp_path / "weak", [2] * 10 + [0] * 30, width=16)


def test_runs_are_read_as_they_were_written(good, weak):
    first, second = open_runs([good, weak])
    assert (first.name, second.name) == ("good", "weak")
    assert first.report == json.loads((good / "report.json").read_text())
    assert first.recipe["generator"] == {"width": 32}
    assert second.ranks.of("generator", "item", True).tolist() == [2] * 10 + [0] * 30


def test_a_run_without_ranks_is_welcome(good, weak):
    report = json.loads((weak / "report.json").read_text())
    del report["ranks"]
    (weak / "report.json").write_text(json.dumps(report))
    (weak / "ranks.npz").unlink()
    assert open_runs([good, weak])[1].ranks is None


def test_names_tell_runs_apart(tmp_path):
    folders = [tmp_path / "a/x", tmp_path / "b/x", tmp_path / "y"]
    assert run_names(folders) == ["a/x", "b/x", "y"]
    # One path inside the other still gets a name of its own.
    assert run_names([tmp_path / "x", tmp_path / "q/x"]) == [f"{tmp_path.name}/x", "q/x"]


def test_the_command_prints_and_writes(good, weak, tmp_path, capsys):
    page, numbers = tmp_path / "out/compare.html", tmp_path / "out/compare.json"
    words = ["compare", str(good), str(weak), "--html", str(page), "--json", str(numbers)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "1  generator of good" in text
    assert "generator.width  32    16" in text
    compared = json.loads(numbers.read_text())
    assert compared["paired"][0]["best"] == "popularity"
    assert [row["place"] for row in compared["rows"]] == [2, 1, 2]
    assert "0.7500" in page.read_text()
    assert sorted(each.name for each in page.parent.iterdir()) == ["compare.html", "compare.json"]
    assert main([*words[:3], "--markdown", "--metrics", "ndcg@10"]) == 0
    assert capsys.readouterr().out.startswith("## Metrics\n")


def test_other_rules_are_pointed_out_loudly(good, tmp_path, capsys):
    other = Protocol(**{**PROTOCOL.to_dict(), "tie_policy": "shuffle:0"})
    shuffled = make_run(tmp_path / "shuffled", [1] * 40, other)
    assert main(["compare", str(good), str(shuffled)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("!!! NOT COMPARABLE\n")
    assert "!!! tie_policy: A has file, B has shuffle:0" in text


def damage(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "recipe.json").unlink(), "is not a run: it has no recipe.json"),
        (lambda run: (run / "report.json").unlink(), "is not finished: it has no report.json"),
        (damage("recipe.json", b"{"), "recipe.json is not readable as JSON"),
        (damage("recipe.json", b"[1]"), "recipe.json is no recipe"),
        (damage("report.json", b'{"rows": ['), "report.json is not readable as JSON"),
        (damage("report.json", b"\xff\xfe"), "report.json is not readable as JSON"),
        (damage("report.json", b"{}"), "a report is an object with 'protocol' and 'rows'"),
        (damage("ranks.npz", b"PK"), "ranks.npz is damaged"),
        (lambda run: (run / "ranks.npz").unlink(), "ranks.npz does not exist"),
        (shutil.rmtree, "does not exist; runs are folders"),
    ],
)
def test_a_damaged_run_is_one_clear_error(good, weak, change, message, capsys, tmp_path):
    change(weak)
    page = tmp_path / "page.html"
    assert main(["compare", str(good), str(weak), "--html", str(page)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert message in told.err
    assert str(weak) in told.err
    assert len(told.err.splitlines()) == 1
    assert not page.exists()


def test_ranks_of_another_judgement_are_refused(good, weak):
    shutil.copy(good / "ranks.npz", weak / "ranks.npz")
    with pytest.raises(ValueError, match=r"not the one that report\.json was written with"):
        open_runs([good, weak])


def test_wrong_words_are_clear_errors(good, weak, tmp_path, capsys):
    def refused(*words):
        assert main(["compare", *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "needs runs" in refused()
    assert "at least two runs, got only" in refused(good)
    assert "is given twice" in refused(good, good)
    assert "are the same run" in refused(good, good / ".." / "good")
    (tmp_path / "link").symlink_to(good)
    assert "are the same run" in refused(good, tmp_path / "link")
    assert f"is a file; give the folder of a run, such as {good}" in refused(
        weak, good / "report.json"
    )
    assert "choose from mrr@1, " in refused(good, weak, "--metrics", "auc")
    assert "is a folder; give the name of a file" in refused(good, weak, "--html", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(good), str(weak), "--htm", "x"])
    assert stopped.value.code == 2
    assert "--html" in capsys.readouterr().err
