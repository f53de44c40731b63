"""`jaxrec align`: from a finished run to an aligned one, its page, and what it refuses."""

import re
import shutil

import numpy as np
import pytest

from jaxrec.cli import main
from jaxrec.commands.align import take_option
from jaxrec.commands.overrides import UsageError
from jaxrec.files import read_json
from jaxrec.pipeline.align import take_over

SMALL = ("--stages.1.fit.steps", "4", "--stages.1.fit.validate-every", "2")
SMALL += ("--stages.1.fit.checkpoint-every", "2", "--stages.1.fit.log-every", "1")
SMALL += ("--stages.1.validation-cases", "24", "--stages.1.rollouts.group", "4")
SMALL += ("--stages.1.feed.rows", "8", "--evaluation.bootstrap", "20")


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def aligned(finished, one_device):
    """A finished run, and the run of GRPO on an exact match that started from it."""
    words = ["align", str(finished), "--objective", "grpo", "--reward", "exact", *SMALL]
    assert main(words) == 0
    return finished, finished.parent / f"{finished.name}-grpo"


def test_the_new_run_goes_on_where_the_old_one_ended(aligned):
    source, folder = aligned
    before, after = (read_json(each / "report.json")["training"]["stages"] for each in aligned)
    assert [stage["stage"] for stage in after] == ["Supervised", "Align"]
    assert after[0] == before[0]  # taken over, not trained again
    kept = folder / "checkpoints" / "0-supervised" / "finished.json"
    assert kept.read_bytes() == (source / kept.relative_to(folder)).read_bytes()
    assert after[1]["last_step"] == 4


def test_the_result_says_what_changed(aligned):
    source, folder = aligned
    result, stage = read_json(folder / "alignment.json"), folder / "checkpoints" / "1-align"
    before, after = (read_json(stage / f"{name}.json") for name in ("before", "after"))
    for part in ("validation", "test"):
        found = result["rewards"][part]
        assert found["cases"] == 24 == len(before["rewards"][part])
        assert found["before"] == pytest.approx(np.mean(before["rewards"][part]), abs=1e-6)
        assert found["after"] == pytest.approx(np.mean(after["rewards"][part]), abs=1e-6)
        gap = found["after"] - found["before"]
        assert found["difference"] == pytest.approx(gap, abs=1e-6)
        low, high = found["difference_interval"]
        assert low <= gap + 1e-9
        assert gap <= high + 1e-9
    row = next(
        row
        for row in read_json(folder / "report.json")["rows"]
        if row["method"] == "generator" and row["level"] == "item" and row["seen_masked"]
    )
    assert result["ranking"]["after"] == row["metrics"]
    assert result["run"] == source.name


def test_the_page_has_every_part(aligned):
    _, folder = aligned
    page = (folder / "alignment.html").read_text(encoding="utf-8")
    for heading in ("Rewards", "Rankings on the test cases", "How lists changed"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<article>") == 8
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)


def test_the_same_command_trains_nothing_again(aligned, capfd):
    source, folder = aligned
    metrics = folder / "checkpoints" / "1-align" / "metrics.jsonl"
    content, stamp = metrics.read_bytes(), metrics.stat().st_mtime_ns
    words = ["align", str(source), "--objective", "grpo", "--reward", "exact", *SMALL]
    assert main(words) == 0
    assert (metrics.read_bytes(), metrics.stat().st_mtime_ns) == (content, stamp)
    assert "alignment: " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run"),
        (["RUN"], "name an --objective"),
        (["RUN", "--objective", "grpoo"], "Perhaps you meant 'grpo'"),
        (["RUN", "--objective", "dpo", "--reward", "exat"], "Perhaps you meant 'exact'"),
        (["RUN", "--objective", "grpo", "--pairs", "x.npz"], "grpo is not"),
        (["RUN", "--objective", "dpo", "--reward", "exact", "--pairs", "x.npz"], "is no file"),
        (["RUN", "--objective"], "--objective needs a value"),
        (["nowhere", "--objective", "grpo"], "is not a run"),
        (
            ["RUN", "--objective", "grpo", "--reward", "exact", "--name", "other", "--seed", "1"],
            "holds a run with",
        ),
    ],
)
def test_refuses_in_one_line(finished, capfd, words, message):
    words = [str(finished) if word == "RUN" else word for word in words]
    assert main(["align", *words]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_without_a_report_is_refused(finished, tmp_path, capfd):
    shutil.copytree(finished, tmp_path / "half", symlinks=True)
    (tmp_path / "half" / "report.json").unlink()
    assert main(["align", str(tmp_path / "half"), "--objective", "dpo", "--reward", "exact"]) == 2
    assert "starts from a finished run" in capfd.readouterr().err
    assert not (tmp_path / "half-dpo").exists()


def test_a_stage_that_is_not_finished_is_not_taken_over(tmp_path):
    (tmp_path / "stage").mkdir()
    with pytest.raises(ValueError, match="not finished"):
        take_over(tmp_path / "stage", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_options_are_taken_once():
    words = ["--seed", "1", "--reward=exact"]
    assert take_option(words, "--reward") == "exact"
    assert words == ["--seed", "1"]
    with pytest.raises(UsageError, match="twice"):
        take_option(["--pairs", "a", "--pairs", "b"], "--pairs")
