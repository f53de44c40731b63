"""`jaxrec recommend` from a file or standard input: lines out, files whole, errors short."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.cli import main
from jaxrec.pipeline.recommend import recommend_histories
from jaxrec.pipeline.run import open_finished


@pytest.fixture(scope="module")
def opened(finished):
    return open_finished(finished)


@pytest.fixture
def answering(opened, monkeypatch):
    """Opens the run once for all tests: nothing here is about opening."""
    monkeypatch.setattr("jaxrec.pipeline.run.open_finished", lambda folder: opened)
    return opened


@pytest.fixture(scope="module")
def histories(opened):
    draw = np.random.default_rng(2)
    items = opened.data.histories.items
    return [items[draw.integers(0, len(items), size)].tolist() for size in (3, 0, 12, 7, 40)]


def requests_file(folder, *requests):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in requests]
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recommend(capfd, *words):
    code = main(["recommend", "a-run", *map(str, words)])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_a_file_gets_the_answers_of_single_histories(
    answering, histories, tmp_path, capfd, monkeypatch
):
    path = requests_file(tmp_path, *histories)
    code, out, err = recommend(capfd, "--input", path, "--count", "7", "--batch", "8")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [list(each) for each in answers] == [
        ["name", "history", "history_used", "unknown", "candidates", "recommendations"]
    ] * len(histories)
    for answer, history in zip(answers, histories):
        (single,) = recommend_histories(answering, [history], count=7)
        assert answer["history"] == single.history
        for given, expected in zip(answer["recommendations"], single.recommendations, strict=True):
            for name in ("rank", "item", "title", "semantic_id"):
                assert given[name] == getattr(expected, name)
            assert given["score"] == pytest.approx(expected.score, abs=1e-5)
            assert given["reasons"][0]["kind"] == "score"


def test_standard_input_is_read_where_asked(answering, capfd, monkeypatch):
    stdin = io.BytesIO(b'{"user": "u3", "id": "\xc3\xa9"}\n')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    code, out, _ = recommend(capfd, "--input", "-", "--count", "2", "--no-reasons")
    assert code == 0
    answer = json.loads(out)
    assert answer["name"] == "é"
    assert '"name": "é"' in out
    assert [each["reasons"] for each in answer["recommendations"]] == [[], []]


def test_what_is_no_text_comes_back_as_its_escape(answering, tmp_path, capfd):
    item = answering.data.histories.items[0]
    path = requests_file(tmp_path, f'["{item}", "\\ud800", "line\\nend"]')
    code, out, _ = recommend(capfd, "--input", path)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert json.loads(out)["unknown"] == ["\ud800", "line\nend"]


def test_nothing_comes_of_nothing(answering, tmp_path, capfd):
    path = requests_file(tmp_path, "", "  ")
    code, out, err = recommend(capfd, "--input", path)
    assert (code, out) == (0, "")
    assert err == f"{path} has no request.\n"


def test_a_bad_line_stops_with_its_number_after_what_came_before(answering, tmp_path, capfd):
    path = requests_file(tmp_path, [], "", "{", [])
    code, out, err = recommend(capfd, "--input", path)
    assert code == 2
    assert err.startswith(f"error: {path}, line 3: it is not JSON: ")
    assert err.count("\n") == 1
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["line 1"]


def test_bad_lines_are_passed_over_where_asked(answering, tmp_path, capfd):
    path = requests_file(tmp_path, [], "{", {"user": "nobody"}, {"user": "u0"})
    code, out, err = recommend(capfd, "--input", path, "--on-error", "skip", "--count", "1")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [each.get("name") for each in answers] == ["line 1", None, None, "u0"]
    assert [list(each) for each in answers[1:3]] == [["line", "error"]] * 2
    assert [each["line"] for each in answers[1:3]] == [2, 3]
    assert "does not know user nobody" in answers[2]["error"]
    assert "2 of 4 requests could not be answered" in err


def test_bytes_that_are_no_text_are_a_bad_line(answering, tmp_path, capfd):
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b'[]\n["\xe9"]\n')
    code, out, err = recommend(capfd, "--input", path)
    assert code == 2
    assert "line 2: it is not UTF-8 (byte 0xe9 at place 2)" in err
    assert len(out.splitlines()) == 1


def test_a_truncated_archive_gives_what_could_be_read(answering, tmp_path, capfd):
    path = tmp_path / "requests.gz"
    names = [f'{{"history": [], "count": 1, "id": "{number}"}}\n' for number in range(3000)]
    path.write_bytes(gzip.compress("".join(names).encode())[:-3000])
    code, out, err = recommend(capfd, "--input", path, "--no-reasons")
    assert code == 2
    assert f"{path} cannot be read" in err
    answered = [json.loads(line)["name"] for line in out.splitlines()]
    assert 0 < len(answered) < 3000
    assert answered == [str(number) for number in range(len(answered))]


def test_a_file_of_answers_equals_what_is_printed(answering, histories, tmp_path, capfd):
    path, target = requests_file(tmp_path, *histories), tmp_path / "new" / "answers.jsonl"
    _, printed, _ = recommend(capfd, "--input", path)
    code, out, _ = recommend(capfd, "--input", path, "--output", target)
    assert (code, out) == (0, "")
    assert target.read_text(encoding="utf-8") == printed
    assert list(target.parent.iterdir()) == [target]


def fail_at_replace(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*paths):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("last", "at_replace", "code"),
    [("{", None, 2), ("[]", fail_at_replace, 2), ("[]", interrupt, 130)],
)
def test_a_file_of_answers_is_whole_or_the_old_one(
    answering, tmp_path, capfd, monkeypatch, last, at_replace, code
):
    path, target = requests_file(tmp_path, *["[]"] * 20, last), tmp_path / "answers.jsonl"
    target.write_text("old")
    if at_replace:
        monkeypatch.setattr("os.replace", at_replace)
    assert recommend(capfd, "--input", path, "--output", target, "--batch", "8")[0] == code
    assert target.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [target, path]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "{folder}/none"], "none does not exist"),
        (["--input", "{folder}"], "is a folder; name the file"),
        (["--input", "{folder}/empty"], "is empty"),
        (["--input", "-", "--user", "u0"], "give either --input or --user and --history, not both"),
        (["--input", "-", "--history"], "not both"),
        (["--input", "-", "--batch", "-1"], "--batch -1 is no number of lines"),
        (["--input", "{folder}/full", "--output", "{folder}"], "is not a file"),
        (["--input", "{folder}/full", "--output", "/dev/null"], "is not a file"),
        (["--input", "{folder}/full", "--output", "{folder}/full"], "would replace the requests"),
        (["--user", "u0", "--output", "{folder}/full/x"], "{folder}/full"),
        ([], "nobody to recommend to"),
    ],
)
def test_what_cannot_work_is_found_before_the_run_is_opened(
    tmp_path, capfd, monkeypatch, words, message
):
    monkeypatch.setattr("jaxrec.pipeline.run.open_finished", None)
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_text("[]\n")
    code, out, err = recommend(capfd, *(word.format(folder=tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message.format(folder=tmp_path) in err
    assert (tmp_path / "full").read_text() == "[]\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_table_says_reasons_unless_told_not_to(answering, capfd):
    names = answering.data.histories.items.tolist()
    words = ["--history", *names[:20], "gone", "--count", "5"]
    code, table, _ = recommend(capfd, *words)
    assert code == 0
    assert "  read: the newest 16 of 20 items\n" in table
    assert "  not in the catalogue, left out: gone\n" in table
    assert "         shares <a_" in table
    assert "         statistic: number " in table
    _, short, _ = recommend(capfd, *words, "--no-reasons")
    assert short.splitlines() == [
        line for line in table.splitlines() if not line.startswith("         ")
    ]


def jaxrec(finished, *words, **streams):
    command = [sys.executable, "-m", "jaxrec.cli", "recommend", str(finished), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **streams)


def test_a_reader_who_has_had_enough_is_no_error(finished, tmp_path):
    """`jaxrec recommend ... | head -1`: far more follows than a pipe can hold."""
    path = requests_file(tmp_path, *[[]] * 600)
    job = jaxrec(finished, "--input", str(path), "--count", "20")
    first = job.stdout.readline()
    job.stdout.close()
    err = job.stderr.read()
    job.stderr.close()
    assert (job.wait(), err) == (0, b"")
    assert json.loads(first)["name"] == "line 1"


def test_a_pipe_is_answered_line_by_line(finished):
    """Each answer comes before the next question is asked."""
    job = jaxrec(
        finished, "--input", "-", "--batch", "1", "--count", "1", stdin=subprocess.PIPE, bufsize=0
    )
    for name in ("one", "two"):
        job.stdin.write(json.dumps({"history": [], "id": name}).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(job.stdout.fileno(), 1 << 16)
        assert json.loads(answer)["name"] == name
    rest, err = job.communicate(b"what?\n")
    assert (job.returncode, rest) == (2, b"")
    assert err.startswith(b"error: standard input, line 3: it is not JSON")
