import html.parser
import json
import os
import time

import pytest

from jaxrec.cli import main
from jaxrec.commands import data_describe
from jaxrec.data.dataset import read_dataset, write_dataset
from jaxrec.data.description import describe
from jaxrec.data.histories import prepare
from jaxrec.data.splits import LeaveOneOut
from jaxrec.pipeline import describe as page_module
from jaxrec.pipeline.bars import bars_svg
from jaxrec.pipeline.describe import description_lines, recipe_numbers, render_description
from jaxrec.recipe import Data

EVIL = "<script>alert('x')</script>\x1b[31m"
NOON = 1_600_000_000


class Reader(html.parser.HTMLParser):
    """Checks that elements close in order, and collects what a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]
        assert tag != "script"

    def handle_startendtag(self, tag, attrs):
        self.fetched += [
            v for k, v in attrs if k in ("src", "xlink:href") and not v.startswith("#")
        ]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.fetched == []
    assert "://" not in page
    assert "url(h" not in page
    return reader.text


def full_dataset(folder):
    """A small log that has everything a description can tell, with hostile names."""
    rows = [
        (f"u{user}", f"i{(3 * user + step) % 7}", NOON + 40_000 * user + 1000 * (step // 2))
        for user in range(12)
        for step in range(6)
    ]
    user, item, moment = map(list, zip(*rows))
    user = [EVIL if each == "u0" else each for each in user]
    log = {
        "user": user,
        "item": item,
        "timestamp": moment,
        "event": ["exposed" if place % 6 == 0 else "click" for place in range(len(rows))],
        "page": [f"{each}/{when}" for each, when in zip(user, moment)],
        "value": [float(place) for place in range(len(rows))],
    }
    items = {
        "item": [f"i{row}" for row in range(7)],
        "title": [f"{EVIL} & co", *(f"Thing {row} of many" for row in range(6))],
        EVIL: [1.0] * 7,
    }
    return write_dataset(
        folder,
        log,
        items,
        name=f"shop {EVIL}",
        source=EVIL,
        licence="none",
        history_events=("click",),
        grades=("exposed", "click"),
        page_rule="pages are <i>seconds</i>",
    )


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    found = describe(full_dataset(tmp_path_factory.mktemp("full") / "d"))
    return {**found, "advice": [f"careful: {EVIL}"]}


def test_the_page_is_whole_and_everything_from_data_is_escaped(numbers):
    page = render_description(numbers)
    text = read_page(page)
    assert "<script" not in page
    assert "<i>seconds" not in page
    for part in ("Advice", "pages are <i>seconds</i>", "Kinds of events, weakest first", EVIL):
        assert part in text
    assert page.count("<svg") == 3
    assert page == render_description(numbers)


def test_the_lines_tell_the_same_and_cannot_steer_a_terminal(numbers):
    lines = description_lines(numbers)
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    assert f"{60:,} events of 12 users with 7 items" in lines[0]
    assert "rows, with other kinds              72" in text
    assert "    exposed    12  16.7%            no" in text
    assert "values                              72, from 0 to 71, mean 35.5" in text
    assert "exposures                           72" in text
    assert lines[-1].startswith("advice: careful: ")
    page = read_page(render_description(numbers))
    for section in page_module.sections(numbers):
        for name, value in section.facts.items():
            assert name in text
            assert name in page
            assert value in page


def test_without_matplotlib_the_numbers_stay(numbers, monkeypatch):
    monkeypatch.setattr(page_module, "has_matplotlib", lambda: False)
    page = render_description(numbers)
    assert "<svg" not in page
    assert "Install jaxrec[plots] for figures" in read_page(page)
    assert "Users by events of a user, in numbers" in page


def test_pages_that_cannot_be_made_and_clocks_that_are_missing_are_told(numbers):
    poor = {**numbers, "pages": {"error": "No <grades>."}, "time": None, "values": None}
    text = read_page(render_description(poor))
    assert "No <grades>." in text
    assert "none: the log has only an order" in text
    assert "without a clock" in description_lines(poor)[0]


def test_bars_print_at_most_twelve_labels():
    svg = bars_svg([f"2020-{month:02d}" for month in range(1, 61)], list(range(60)), "month", "n")
    assert svg.startswith("<svg")
    assert svg.count(">2020-") == 12
    assert ">2020-01<" in svg
    assert ">2020-06<" in svg


def test_recipe_numbers_are_those_after_the_filters(tmp_path):
    histories = prepare(full_dataset(tmp_path / "d"), min_item=5)
    split = LeaveOneOut()(histories)
    data = Data(source=None, split=LeaveOneOut(), min_item=5)
    told = recipe_numbers(data, histories, split)
    assert (told["min_item"], told["split"], told["ties"]) == (5, "leave-one-out", "file")
    assert told["events"] == histories.num_events
    assert told["test"] == len(split.test) == told["validation"]
    assert told["cold_targets"] == 0.0


def run(capsys, *words):
    assert main(["data", "describe", *map(str, words)]) == 0
    return capsys.readouterr()


def failing(capsys, *words):
    assert main(["data", "describe", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_a_folder_gets_its_page_beside_it(tmp_path, capsys):
    dataset = full_dataset(tmp_path / "shop")
    shown = run(capsys, tmp_path / "shop")
    page = tmp_path / "shop.description.html"
    assert f"page: {page}" in shown.out
    read_page(page.read_text(encoding="utf-8"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["shop", "shop.description.html"]
    assert len(os.listdir(tmp_path / "shop")) == 3
    read_dataset(dataset.path)


def test_html_and_json_go_where_they_are_asked_to(tmp_path, capsys):
    dataset = full_dataset(tmp_path / "shop")
    out = run(
        capsys, tmp_path / "shop/", "--html", tmp_path / "new/a.html", "--json", tmp_path / "n.json"
    )
    assert "numbers: " in out.out
    assert json.loads((tmp_path / "n.json").read_text(encoding="utf-8")) == describe(dataset)
    assert (tmp_path / "new/a.html").is_file()
    assert not (tmp_path / "shop.description.html").exists()


def test_a_recipe_is_told_with_its_split_and_filters(root, tmp_path, capsys):
    words = ["--data.source.users", 200, "--data.source.items", 50, "--data.min-user", 6]
    shown = run(
        capsys,
        root / "configs/synthetic.py",
        *("--runs", tmp_path, "--json", tmp_path / "n.json"),
        *words,
    ).out
    told = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert told["recipe"]["min_user"] == 6
    assert told["recipe"]["users"] < told["counts"]["users"] == 200
    assert f"{told['recipe']['test']:,} test cases" in shown
    assert "min_user 6, min_item 0" in shown
    page = tmp_path / "synthetic/description.html"
    assert "The recipe" in read_page(page.read_text(encoding="utf-8"))
    first = page.read_bytes()
    again = run(capsys, tmp_path / "synthetic").out
    assert f"page: {page}" in again
    assert page.read_bytes() == first


def test_help_explains_the_command(capsys):
    assert "FOLDER.description.html" in run(capsys, "--help").out
    assert "--json FILE" in run(capsys, "x", "--help").out


def test_what_is_no_dataset_and_no_recipe_is_said(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("user,item\n")
    (tmp_path / "empty").mkdir()
    assert "needs a dataset folder or a recipe" in failing(capsys)
    assert "no dataset folder and no recipe at" in failing(capsys, tmp_path / "nowhere")
    assert "there is no recipe at" in failing(capsys, tmp_path / "nowhere.py")
    assert f"jaxrec data import {tmp_path / 'log.csv'}" in failing(capsys, tmp_path / "log.csv")
    assert "dataset.json is missing" in failing(capsys, tmp_path / "empty")


def test_a_damaged_folder_is_found(tmp_path, capsys):
    full_dataset(tmp_path / "d")
    file = tmp_path / "d/interactions.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert "SHA-256" in failing(capsys, tmp_path / "d")
    assert not (tmp_path / "d.description.html").exists()


def test_files_that_cannot_be_written_are_found_before_any_work(tmp_path, capsys, monkeypatch):
    full_dataset(tmp_path / "d")
    inside = tmp_path / "d/page.html"
    assert "lies in the dataset folder" in failing(capsys, tmp_path / "d", "--html", inside)
    assert "lies in the dataset folder" in failing(capsys, tmp_path / "d", "--json", inside)
    assert "is a folder" in failing(capsys, tmp_path / "d", "--html", tmp_path)
    same = ["--html", tmp_path / "a", "--json", tmp_path / "a"]
    assert "Name two files" in failing(capsys, tmp_path / "d", *same)
    (tmp_path / "file").write_text("")
    below = tmp_path / "file/page.html"
    assert "is not a writable folder" in failing(capsys, tmp_path / "d", "--html", below)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is not a writable folder" in failing(capsys, tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == ["d", "file"]


@pytest.mark.parametrize("recipe", [False, True])
def test_a_misspelt_flag_ends_in_2(root, tmp_path, capsys, recipe):
    full_dataset(tmp_path / "d")
    path = root / "configs/synthetic.py" if recipe else tmp_path / "d"
    with pytest.raises(SystemExit) as ended:
        main(["data", "describe", str(path), "--htlm", "x"])
    assert ended.value.code == 2
    assert "--htlm" in capsys.readouterr().err


def test_long_work_is_explained_and_short_work_is_not(monkeypatch, capsys):
    monkeypatch.setattr(data_describe, "PATIENCE", 0.05)
    monkeypatch.setenv("JAXREC_PROGRESS", "1")
    with data_describe.patient("working ..."):
        time.sleep(0.5)
    assert capsys.readouterr().err == "working ...\n"
    monkeypatch.setattr(data_describe, "PATIENCE", 60.0)
    with data_describe.patient("working ..."):
        pass
    monkeypatch.setattr(data_describe, "PATIENCE", 0.05)
    monkeypatch.setenv("JAXREC_PROGRESS", "0")
    with data_describe.patient("working ..."):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
