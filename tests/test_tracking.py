"""Metric rows that survive kills, and progress that fits a terminal and a log."""

import io
import json
import math
import sys

import numpy as np
import pytest

from jaxrec.tracking import JsonLines, MetricWriter, Progress, Several, TensorBoard, WandB, track


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """Progress is what is tested here; elsewhere it is switched off."""
    monkeypatch.delenv("JAXREC_PROGRESS", raising=False)


@pytest.fixture
def lines(tmp_path):
    lines = JsonLines(tmp_path / "deep" / "metrics.jsonl")
    for step in (1, 2, 2, 3):
        lines.write(step, {"loss": 1 / step})
    return lines


def test_rows_come_back(lines):
    assert lines.rows() == [{"step": step, "loss": 1 / step} for step in (1, 2, 2, 3)]
    assert lines.path.read_text().splitlines()[0] == '{"step": 1, "loss": 1.0}'
    lines.close()
    assert JsonLines(lines.path.with_name("none.jsonl")).rows() == []


def test_numbers_are_exact_and_strict_json(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.write(3, {"a": np.float32(0.1), "b": math.nan, "c": -math.inf, "d": 7})
    text = lines.path.read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 3, "a": float(np.float32(0.1)), "b": None, "c": None, "d": 7}


def test_rewind_drops_what_is_beyond(lines):
    lines.rewind(2)
    assert [row["step"] for row in lines.rows()] == [1, 2, 2]
    lines.rewind(2, rows=2)
    assert [row["step"] for row in lines.rows()] == [1, 2]
    before = lines.path.stat().st_ino
    lines.rewind(5, rows=9)
    assert lines.path.stat().st_ino == before, "nothing to do, nothing written"
    lines.rewind(-1, rows=0)
    assert lines.rows() == []
    JsonLines(lines.path.with_name("none.jsonl")).rewind(3)


@pytest.mark.parametrize("tail", ['{"step": 4, "lo', '{"step": 4}', "\x00\xff"])
def test_a_line_cut_short_is_ignored_and_removed(lines, tail):
    with open(lines.path, "a") as file:
        file.write(tail)
    assert [row["step"] for row in lines.rows()] == [1, 2, 2, 3]
    lines.rewind(9)
    lines.write(4, {"loss": 0.0})
    assert [row["step"] for row in lines.rows()] == [1, 2, 2, 3, 4]


def test_damage_in_the_middle_is_told(lines):
    content = lines.path.read_text().splitlines()
    lines.path.write_text("\n".join([content[0], "oops", *content[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is not JSON"):
        lines.rows()


def test_rewind_is_atomic(lines, monkeypatch):
    def killed(*arguments):
        raise InterruptedError

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(InterruptedError):
        lines.rewind(1)
    assert len(lines.rows()) == 4


def test_labels_share_a_file(tmp_path):
    one, two = (JsonLines(tmp_path / "m.jsonl", stage=number) for number in (1, 2))
    one.write(5, {"loss": 1.0})
    two.write(1, {"loss": 2.0})
    one.write(6, {"loss": 3.0})
    assert one.rows() == [
        {"step": 5, "stage": 1, "loss": 1.0},
        {"step": 6, "stage": 1, "loss": 3.0},
    ]
    one.rewind(5)
    two.rewind(-1, rows=0)
    assert JsonLines(tmp_path / "m.jsonl").rows() == one.rows()[:1]


def test_several_and_the_protocol(tmp_path):
    writers = [JsonLines(tmp_path / "a.jsonl"), JsonLines(tmp_path / "b.jsonl")]
    several = Several(writers)
    assert isinstance(several, MetricWriter)
    assert isinstance(writers[0], MetricWriter)
    for step in (1, 2, 3):
        several.write(step, {"x": 1.0})
    several.rewind(3, rows=2)
    several.close()
    assert [len(writer.rows()) for writer in writers] == [2, 2]


def test_tensorboard_writes_and_rewinds(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path)
    assert isinstance(board, MetricWriter)
    board.write(1, {"loss": 0.5})
    board.rewind(1)
    board.write(2, {"loss": 0.25})
    board.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert content.count(b"loss") == 2


@pytest.mark.parametrize(
    ("make", "module", "words"),
    [
        (lambda: TensorBoard("x"), "tensorboardX", r"jaxrec\[tensorboard\]"),
        (lambda: WandB("project", "name"), "wandb", r"jaxrec\[wandb\]"),
    ],
)
def test_a_missing_extra_says_how_to_get_it(make, module, words, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=words):
        make()


class FakeWandb:
    def __init__(self):
        self.calls = []

    def init(self, **settings):
        self.calls.append(settings)
        return self

    def log(self, row, step):
        self.calls.append((step, row))

    def finish(self):
        self.calls.append("finish")


def test_wandb_resumes_under_its_name(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = WandB("project", "run-1", tags=["a"])
    assert isinstance(writer, MetricWriter)
    writer.write(3, {"loss": np.float32(0.5)})
    writer.rewind(2)
    writer.close()
    assert fake.calls[0]["id"] == "run-1"
    assert fake.calls[0]["resume"] == "allow"
    assert fake.calls[1:] == [(3, {"loss": 0.5}), "finish"]


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("jaxrec.tracking.time.monotonic", lambda: self.now)


def test_short_work_says_nothing(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(10, "short", stream=stream) as progress:
        for _ in range(10):
            clock.now += 0.1
            progress.update()
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(1000, "train", unit="step", initial=900, stream=stream) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.update(1, loss=0.123456, best=3)
    printed = stream.getvalue().splitlines()
    # At 2, 12 and 22 seconds, and at the end (25).
    assert len(printed) == 4
    assert "\r" not in stream.getvalue()
    assert printed[0].startswith("train:  91% 908/1000")
    assert "4.00step/s" in printed[0]
    assert "00:23" in printed[0], "time left"
    assert printed[0].endswith("loss=0.1235, best=3]")
    assert "1000/1000" in printed[-1]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(3, "bar", stream=stream) as progress:
        for _ in range(3):
            progress.update(1, loss=1.0)
    assert "\r" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_silence_by_environment(monkeypatch):
    monkeypatch.setenv("JAXREC_PROGRESS", "0")
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(2, stream=stream) as progress:
        clock.now += 60
        progress.update(2)
    assert stream.getvalue() == ""


def test_a_stream_that_is_closed_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    stream.close()
    with Progress(1, stream=stream) as progress:
        progress.update()
    assert stream.closed, "nothing tried to write to it, or that would have raised"


def test_track_yields_everything(monkeypatch, capsys):
    assert list(track(range(3), "three")) == [0, 1, 2]
    assert list(track((item for item in "ab"), unit="letters")) == ["a", "b"]
    assert capsys.readouterr().err == ""
