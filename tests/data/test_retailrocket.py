import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.retailrocket import RetailRocket
from jaxrec.data.histories import prepare

EVENTS = (
    "timestamp,visitorid,event,itemid,transactionid\n"
    "1433221332117,1,view,10,\n"
    "1433221999999,2,addtocart,11,\n"
    "1433221000000,1,transaction,10,4000\n"
)
PROPERTIES = "timestamp,itemid,property,value\n"
TRAIN = "user,item,behavior,timestamp\n0,3,view,10\n0,1,cart,20\n1,3,buy,5\n"


def write_original(folder, events=EVENTS, **properties):
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text(events)
    for name, rows in properties.items():
        (folder / f"item_properties_{name}.csv").write_text(PROPERTIES + rows)
    return str(folder)


def write_sample(folder, train=TRAIN, test="user,item\n0,7\n1,1\n"):
    folder.mkdir(exist_ok=True)
    (folder / "train_events.csv").write_text(train)
    if test is not None:
        (folder / "test_buy.csv").write_text(test)
    return str(folder)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


def test_the_original_files(tmp_path):
    path = write_original(
        tmp_path / "a",
        part1="2000,10,categoryid,late\n1000,10,790,n5\n",
        part2="1000,10,categoryid,early\n1000,99,categoryid,other\n",
    )
    source = RetailRocket(path)
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("1", "10", 1433221332, "view", None),
        ("2", "11", 1433221999, "cart", None),
        ("1", "10", 1433221000, "buy", "4000"),
    ]
    assert dataset.items().rows() == [("10", "early"), ("11", None)]
    assert dataset.manifest["grades"] == ["view", "cart", "buy"]
    assert "page_rule" not in dataset.manifest
    assert len(source.fingerprint()) == 3
    histories = prepare(dataset, events=("view", "buy"))
    assert (histories.num_users, histories.num_events) == (1, 2)


def test_without_properties(tmp_path):
    dataset = written(RetailRocket(write_original(tmp_path / "a")), tmp_path / "d")
    assert dataset.items().columns == ["item"]


def test_the_preprocessed_files(tmp_path):
    path = write_sample(tmp_path / "a")
    dataset = written(RetailRocket(path), tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("0", "3", 10, "view"),
        ("0", "1", 20, "cart"),
        ("1", "3", 5, "buy"),
        ("0", "7", 21, "buy"),
        ("1", "1", 6, "buy"),
    ]
    assert dataset.items()["item"].to_list() == ["3", "1", "7"]
    assert "a second after" in dataset.manifest["source"]
    without = RetailRocket(path, test=False)
    assert written(without, tmp_path / "e").interactions().height == 3
    assert list(without.fingerprint()) == ["train_events.csv"]
    assert list(RetailRocket(path).fingerprint()) == ["train_events.csv", "test_buy.csv"]


def test_without_held_out_purchases(tmp_path):
    dataset = written(RetailRocket(write_sample(tmp_path / "a", test=None)), tmp_path / "d")
    assert dataset.interactions().height == 3


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("time,visitorid,event,itemid\n1,1,view,1\n", "no column 'timestamp'.*'time'"),
        (EVENTS + "1,1,click,1,\n", "event 'click' is none of view, addtocart, transaction"),
        (EVENTS + "1,1,,1,\n", "event 'None' is none of"),
        (EVENTS + "late,1,view,1,\n", "cannot be read"),
        (EVENTS + "-1000,1,view,1,\n", "earliest timestamp is -1"),
        (EVENTS + "9999999999999999,1,view,1,\n", "latest timestamp"),
        (EVENTS + "1,,view,1,\n", "have no 'user'"),
        (EVENTS + "1,1,view,1,2,3,4\n", "more cells than the first line"),
        (EVENTS.split("\n")[0] + "\n", "the log is empty"),
        ("", "events.csv is empty"),
    ],
)
def test_bad_events(tmp_path, events, message):
    path = write_original(tmp_path / "a", events)
    with pytest.raises(DataError, match=message):
        RetailRocket(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_bad_properties(tmp_path):
    path = write_original(tmp_path / "a", part1="soon,10,categoryid,5\n")
    with pytest.raises(DataError, match=r"item_properties_part1\.csv cannot be read"):
        RetailRocket(path).write(tmp_path / "d")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("user\n0\n", "no column 'item'"),
        ("user,item\n5,3\n", "user '5' has no event in train_events"),
    ],
)
def test_bad_held_out_purchases(tmp_path, test, message):
    path = write_sample(tmp_path / "a", test=test)
    with pytest.raises(DataError, match=message):
        RetailRocket(path).write(tmp_path / "d")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"has neither events\.csv nor train_events\.csv"):
        RetailRocket(str(tmp_path)).write(tmp_path / "d")


@pytest.mark.real_data
def test_the_real_sample(tmp_path, shared_data):
    source = RetailRocket(str(shared_data / "retailrocket"))
    dataset = written(source, tmp_path / "d")
    # 97,381 rows of train_events.csv and 2,174 held-out purchases.
    assert dataset.manifest["counts"] == {"interactions": 99_555, "users": 2174, "items": 30_113}
    kinds = dict(dataset.interactions()["event"].value_counts().rows())
    assert kinds == {"view": 75_374, "cart": 12_456, "buy": 11_725}
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_events) == (2174, 99_555)
    # The last event of every history is the held-out purchase.
    assert (histories.action[histories.offsets[1:] - 1] == histories.actions.index("buy")).all()
