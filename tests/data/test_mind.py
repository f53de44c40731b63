import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.mind import Mind
from jaxrec.data.histories import prepare
from jaxrec.data.pages import check_pages, page_summary, prepare_pages

BEHAVIORS = (
    "7\tu\t11/12/2019 2:14:46 PM\tN9 N1\tN2-1 N3-0 N1-1\n"
    "8\tv\t1/9/2019 12:00:01 AM\t\tN3-0\n"
    "9\tu\t11/12/2019 2:14:40 PM\tN9 N1\tN1-0\n"
)
NEWS = (
    'N1\tsports\tgolf\tA "title"\tSay\thttp://x\t[{"Label": "Oslo"}]\t[{"Label": "Oslo"}, '
    '{"Label": "Caf\\u00e9"}]\n'
    "N7\tnews\tworld\tNot shown\t\thttp://y\t[]\t[]\n"
)
FIRST, SECOND, OTHER = 1_573_568_080, 1_573_568_086, 1_546_992_001


def write_part(folder, behaviors=BEHAVIORS, news=NEWS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "behaviors.tsv").write_text(behaviors)
    (folder / "news.tsv").write_text(news)
    return folder


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


def test_impressions_are_pages_and_the_history_comes_before(tmp_path):
    dataset = written(Mind(str(write_part(tmp_path / "a"))), tmp_path / "d")
    columns = ["user", "item", "timestamp", "event", "page", "position", "value"]
    assert dataset.interactions(columns).rows() == [
        ("u", "N9", FIRST - 2, "click", None, None, None),
        ("u", "N1", FIRST - 1, "click", None, None, None),
        ("u", "N2", SECOND, "click", "u:7", 0, 1.0),
        ("u", "N3", SECOND, "exposed", "u:7", 1, 0.0),
        ("u", "N1", SECOND, "click", "u:7", 2, 1.0),
        ("v", "N3", OTHER, "exposed", "v:8", 0, 0.0),
        ("u", "N1", FIRST, "exposed", "u:9", 0, 0.0),
    ]
    assert dataset.items()["item"].to_list() == ["N9", "N1", "N2", "N3"]
    assert dataset.items().row(1, named=True) == {
        "item": "N1",
        "category": "sports",
        "subcategory": "golf",
        "title": 'A "title"',
        "abstract": "Say",
        "url": "http://x",
        "entities": "Oslo, Caf\u00e9",
    }
    assert dataset.manifest["grades"] == ["exposed", "click"]
    assert (
        dataset.manifest["page_rule"]
        == "pages are requests: a user's rows with the same impression"
    )
    assert "no times" in dataset.manifest["source"]
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    assert pages.time.tolist() == [OTHER, FIRST, SECOND]
    assert [pages.history(page, histories) for page in (1, 2)] == [slice(0, 2), slice(0, 2)]


def test_without_the_history(tmp_path):
    source = Mind(str(write_part(tmp_path / "a")), history=False)
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions()["page"].null_count() == 0
    assert dataset.interactions().height == 5
    assert "no times" not in dataset.manifest["source"]


def test_several_parts(tmp_path):
    write_part(tmp_path / "a/MINDsmall_train")
    later = "7\tu\t11/15/2019 2:14:46 PM\tN9 N1 N2\tN5-1\n"
    write_part(tmp_path / "a/MINDsmall_dev", later, NEWS.replace("golf", "tennis"))
    source = Mind(str(tmp_path / "a"))
    dataset = written(source, tmp_path / "d")
    # The history of dev repeats the clicks of train, so only the first impression's is read.
    assert dataset.interactions().height == 8
    assert set(dataset.interactions()["page"]) == {
        None,
        "u:MINDsmall_dev 7",
        "u:MINDsmall_train 7",
        "u:MINDsmall_train 9",
        "v:MINDsmall_train 8",
    }
    assert dataset.items().filter(item="N1")["subcategory"].to_list() == ["tennis"]
    assert len(source.fingerprint()) == 4
    assert sorted(Mind(str(tmp_path / "a/MINDsmall_dev")).fingerprint()) == [
        "behaviors.tsv",
        "news.tsv",
    ]


@pytest.mark.parametrize(
    ("behaviors", "news", "message"),
    [
        (BEHAVIORS + "1\tu\t11/12/2019 2:14:46 PM\t\tN2 N3\n", NEWS, "'1' is 'N2 N3'.*test part"),
        (BEHAVIORS + "1\tu\t11/12/2019 2:14:46 PM\t\t\n", NEWS, "impression '1' is 'None'"),
        (BEHAVIORS + "1\tu\t2019-11-12\t\tN1-0\n", NEWS, "cannot be read"),
        (BEHAVIORS + "1\tu\t\t\tN1-0\n", NEWS, "have no 'timestamp'"),
        (BEHAVIORS + "1\t\t11/12/2019 2:14:46 PM\t\tN1-0\n", NEWS, "have no 'user'"),
        ("1\tu\tN1-0\n", NEWS, "has 3 columns, and must have 5: impression, user, time"),
        (BEHAVIORS, "N1\tsports\n", "has 2 columns, and must have 8: item, category"),
        (BEHAVIORS, NEWS + NEWS, "news 'N1' has two rows"),
        (BEHAVIORS, NEWS.replace("[]", "{1"), "entities of news 'N7' are not a JSON list"),
        (BEHAVIORS, NEWS.replace("[]", "[3]"), "entities of news 'N7' are not a JSON list"),
        ("", NEWS, "behaviors.tsv is empty"),
        (BEHAVIORS, "", "news.tsv is empty"),
    ],
)
def test_bad_files(tmp_path, behaviors, news, message):
    path = write_part(tmp_path / "a", behaviors, news)
    with pytest.raises(DataError, match=message):
        Mind(str(path)).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_text_that_is_not_utf8(tmp_path):
    path = write_part(tmp_path / "a")
    (path / "news.tsv").write_bytes(NEWS.encode() + b"N8\tcaf\xe9\t\t\t\t\t[]\t[]\n")
    with pytest.raises(DataError, match=r"news\.tsv cannot be read: its text is not UTF-8"):
        Mind(str(path)).write(tmp_path / "d")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nor a folder in it has behaviors\.tsv"):
        Mind(str(tmp_path)).write(tmp_path / "d")
    (write_part(tmp_path / "a") / "news.tsv").unlink()
    with pytest.raises(DataError, match=r"news\.tsv does not exist"):
        Mind(str(tmp_path / "a")).write(tmp_path / "d")
    with pytest.raises(DataError, match=r"news\.tsv does not exist"):
        Mind(str(tmp_path / "a")).fingerprint()


@pytest.mark.real_data
def test_the_real_sample(tmp_path, shared_data):
    dataset = written(Mind(str(shared_data / "mind-small-sample")), tmp_path / "d")
    assert dataset.manifest["counts"] == {"interactions": 328_291, "users": 4637, "items": 22_592}
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_events) == (4637, 146_474)
    pages = prepare_pages(dataset, histories)
    check_pages(pages, histories)
    summary = page_summary(pages)
    assert (summary["pages"], summary["users"], summary["exposures"]) == (5000, 4637, 189_359)
    assert summary["graded"] == {"exposed": 181_817, "click": 7542}
    assert (summary["repeats"], summary["median_size"], summary["max_size"]) == (0, 24.0, 283)
    assert dataset.items()["title"].count() == 838
