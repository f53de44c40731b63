import polars as pl
import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.kuairand import KuaiRand, join_sequences
from jaxrec.data.histories import prepare
from jaxrec.data.pages import check_pages, page_summary, prepare_pages

COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow"),
    *("is_comment", "is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms"),
    *("profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand", "tab"),
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_id,tag\n"
    '5,50,NORMAL,2022-04-10,Web,0.0,87433.0,1,"20,43"\n'
    "6,60,AD,2022-04-09,UNKNOWN,0.0,,1,\n"
    "9,90,AD,2022-04-09,UNKNOWN,0.0,,1,\n"
)


def row(user, video, time, *feedback, play=0, duration=1000, random=0):
    """One exposure; `feedback` names the columns that are 1."""
    known = {"user_id": user, "video_id": video, "time_ms": time, "play_time_ms": play}
    known |= {"duration_ms": duration, "is_rand": random, "tab": 1}
    known |= dict.fromkeys(feedback, 1)
    return [known.get(name, 0) for name in COLUMNS]


STANDARD = [
    row(1, 5, 100_700, "is_click", "long_view", play=2000),
    row(1, 6, 100_300, "is_like", "is_forward", "is_hate", duration=0),
    row(2, 5, 100_300, "is_click", play=250),
    row(1, 7, 131_000),
]
RANDOM = [row(1, 8, 120_000, "is_comment", random=1)]


def as_csv(rows):
    return "\n".join(",".join(map(str, each)) for each in [COLUMNS, *rows]) + "\n"


def write_logs(folder, standard=None, random=None, videos=VIDEOS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(standard or as_csv(STANDARD))
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text(random or as_csv(RANDOM))
    if videos:
        (folder / "video_features_basic_pure.csv").write_text(videos)
    (folder / "video_features_statistic_pure.csv").write_text("video_id,counts\n5,9\n")
    return str(folder)


def write_sample(folder, sequences):
    folder.mkdir(parents=True)
    exposures = pl.DataFrame([dict(zip(COLUMNS, each)) for each in STANDARD])
    exposures.write_parquet(folder / "exposures.parquet")
    names = ("user_id", "last_time_ms", "watch_seq", "long_watch_seq", "like_seq")
    pl.DataFrame([dict(zip(names, each)) for each in sequences]).write_parquet(
        folder / "user_sequences.parquet"
    )
    return str(folder)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


def test_the_original_logs(tmp_path):
    source = KuaiRand(write_logs(tmp_path / "a/data").removesuffix("/data"), page="gap:19")
    dataset = written(source, tmp_path / "d")
    names = ["user", "item", "timestamp", "event", "value", "page", "position"]
    assert dataset.interactions(names).rows() == [
        ("2", "5", 100, "click", 0.25, "2:100", 0),
        ("1", "6", 100, "forward", None, "1:100", 0),
        ("1", "5", 100, "long_view", 2.0, "1:100", 1),
        ("1", "8", 120, "comment", 0.0, "1:120", 0),
        ("1", "7", 131, "exposed", 0.0, "1:120", 1),
    ]
    flags = ["click", "long_view", "like", "comment", "follow", "forward", "hate", "profile"]
    assert dataset.interactions([*flags, "random", "tab"]).rows() == [
        (True, False, False, False, False, False, False, False, False, "1"),
        (False, False, True, False, False, True, True, False, False, "1"),
        (True, True, False, False, False, False, False, False, False, "1"),
        (False, False, False, True, False, False, False, False, True, "1"),
        (False, False, False, False, False, False, False, False, False, "1"),
    ]
    assert dataset.items().rows() == [
        ("5", "50", "NORMAL", "2022-04-10", "Web", 87.433, "20, 43"),
        ("6", "60", "AD", "2022-04-09", "UNKNOWN", None, None),
        ("8", None, None, None, None, None, None),
        ("7", None, None, None, None, None, None),
    ]
    manifest = dataset.manifest
    assert manifest["grades"][0] == "exposed"
    assert manifest["history_events"] == manifest["grades"][1:]
    assert manifest["page_rule"].endswith("neighbours at most 19 s apart")
    assert sorted(source.fingerprint()) == [
        "log_random_4_22_to_5_08_pure.csv",
        "log_standard_4_08_to_4_21_pure.csv",
        "video_features_basic_pure.csv",
    ]


def test_flags(tmp_path):
    path = write_logs(tmp_path / "a", videos=None)
    source = KuaiRand(path, page="day:+8,max:2", ladder=("like", "click"), random=False)
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions(["item", "event", "page"]).rows() == [
        ("5", "click", "2:1970-01-01"),
        ("6", "like", "1:1970-01-01"),
        ("5", "click", "1:1970-01-01"),
        ("7", "exposed", "1:1970-01-01+1"),
    ]
    assert dataset.manifest["page_rule"] == (
        "pages are days: a user's exposures of one day (UTC+8); pages of more than 2 are cut there "
        "(1 were longer)"
    )
    assert dataset.items().columns == ["item"]


def test_earlier_sequences_become_events(tmp_path):
    sequences = [(1, 90_500, [5, 9, 5], [4, 5], [9]), (3, 80_000, [6], [], [])]
    path = write_sample(tmp_path / "a", sequences)
    source = KuaiRand(path)
    dataset = written(source, tmp_path / "d")
    earlier = dataset.interactions().filter(pl.col("page").is_null())
    assert earlier.select("user", "item", "timestamp", "event").rows() == [
        ("1", "4", 87, "long_view"),
        ("1", "5", 88, "exposed"),
        ("1", "9", 89, "like"),
        ("1", "5", 90, "long_view"),
        ("3", "6", 80, "exposed"),
    ]
    assert dataset.interactions().height == 9
    assert "no times" in dataset.manifest["source"]
    assert sorted(source.fingerprint()) == ["exposures.parquet", "user_sequences.parquet"]
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    assert (pages.history_end - histories.offsets[pages.user]).tolist() == [0, 3]
    watched = written(KuaiRand(path, watched="click"), tmp_path / "e")
    assert watched.interactions()["event"].to_list()[1] == "click"


def test_joined_sequences_keep_the_order_of_each():
    watched = list("abcabcab")
    joined = join_sequences(watched, list("zbca"), list("ycb"), "exposed")
    assert [item for item, _ in joined] == list("yz") + watched
    assert [item for item, event in joined if event != "exposed"] == list("yzbcab")
    assert [event for _, event in joined[-3:]] == ["like", "long_view", "like"]
    assert join_sequences([], [], [], "exposed") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "week"}, "page rule 'week'"),
        ({"ladder": ("click", "hate")}, "ladder .* must name kinds of feedback once each"),
        ({"ladder": ("click", "click")}, "ladder .* must name"),
        ({"ladder": ()}, "ladder .* must name"),
        ({"watched": "seen"}, "watched 'seen' is no grade"),
    ],
)
def test_bad_flags(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        KuaiRand(write_logs(tmp_path / "a"), **change).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("user_id,video_id\n1,2\n", "has no column 'time_ms', 'play_time_ms'"),
        (as_csv([row(1, 2, "noon")]), "cannot be read"),
        (as_csv([row(1, 2, 3, play="long")]), "cannot be read"),
        (as_csv([row(1, "", 3)]), "have no 'item'"),
        (as_csv([row("", 2, 3)]), "have no 'user'"),
        (as_csv([row(1, 2, -3000)]), "earliest timestamp is -3"),
        (as_csv([row(1, 2, 10**16)]), "latest timestamp"),
        (as_csv([row(1, 2, 3, play="nan")]), "not finite"),
    ],
)
def test_bad_logs(tmp_path, log, message):
    path = write_logs(tmp_path / "a", standard=log)
    with pytest.raises(DataError, match=message):
        KuaiRand(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_bad_neighbours_of_the_logs(tmp_path):
    path = write_logs(tmp_path / "a", videos="video_id\n5\n")
    with pytest.raises(DataError, match="has no column 'author_id'"):
        KuaiRand(path).write(tmp_path / "d")
    path = write_sample(tmp_path / "b", [(1, 90_500, [5], [], [])])
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "b/user_sequences.parquet")
    with pytest.raises(DataError, match="has no column 'last_time_ms'"):
        KuaiRand(path).write(tmp_path / "d")
    (tmp_path / "b/user_sequences.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"user_sequences\.parquet cannot be read"):
        KuaiRand(path).write(tmp_path / "d")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"has neither log_standard_\*\.csv nor"):
        KuaiRand(str(tmp_path)).write(tmp_path / "d")
    (tmp_path / "log_standard_1.csv").write_text("")
    with pytest.raises(DataError, match=r"log_standard_1\.csv is empty"):
        KuaiRand(str(tmp_path)).write(tmp_path / "d")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("page", "pages", "repeats", "longest"),
    [
        ("second", 91_138, 2983, 3),
        ("gap:600", 84_761, 3251, 10),
        ("gap:3600,max:3", 75_306, 3198, 3),
        ("day:+8", 51_194, 3398, 24),
    ],
)
def test_the_real_sample(tmp_path, shared_data, page, pages, repeats, longest):
    dataset = written(KuaiRand(str(shared_data / "kuairand-pure"), page=page), tmp_path / "d")
    assert dataset.manifest["counts"] == {
        "interactions": 1_015_652,
        "users": 26_768,
        "items": 7502,
    }
    assert dataset.interactions(["page"])["page"].count() == 94_784
    histories = prepare(dataset)
    assert (histories.num_users, histories.num_events) == (25_843, 442_340)
    made = prepare_pages(dataset, histories)
    check_pages(made, histories)
    summary = page_summary(made)
    assert (summary["pages"], summary["repeats"], summary["max_size"]) == (pages, repeats, longest)
    assert summary["exposures"] == 94_784 - repeats
    assert (summary["users"], summary["empty_pages"]) == (20_829, 0)
