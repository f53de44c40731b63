"""Amazon's reviews in every published form, with metadata of each, and files gone wrong."""

import gzip
import json

import pytest

from jaxrec.data.amazon_items import item_fields, price_of, read_items
from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.amazon import AmazonReviews

REVIEWS_2014 = [
    {
        "reviewerID": "A2SUAM1J3GNN3B",
        "asin": "0000013714",
        "reviewerName": 'J. "Mac" O\'Hara',
        "helpful": [2, 3],
        "reviewText": "Fine.",
        "overall": 5.0,
        "summary": "Good",
        "unixReviewTime": 1252800000,
        "reviewTime": "09 13, 2009",
    },
    {"reviewerID": "A1B2", "asin": "0000031852", "overall": 2.0, "unixReviewTime": 1252713600},
    {"reviewerID": "A1B2", "asin": "0000013714", "overall": 4.0, "unixReviewTime": 1252900000},
]
REVIEWS_2018 = [
    {
        "overall": 5.0,
        "vote": "1,024",
        "verified": True,
        "reviewTime": "01 1, 2018",
        "reviewerID": "AUI6WTTT0QZYS",
        "asin": "5120053084",
        "style": {"Size:": " Large", "Color:": " Charcoal"},
        "reviewerName": "Abbey",
        "reviewText": "Soft.",
        "summary": "Soft",
        "unixReviewTime": 1514764800,
    },
    {
        "overall": 3.0,
        "verified": False,
        "reviewerID": "A2XYZ",
        "asin": "B00ABCDEFG",
        "unixReviewTime": 1514851200,
    },
]
REVIEWS_2023 = [
    {
        "rating": 5.0,
        "title": "Good",
        "text": "Fine.",
        "images": [],
        "asin": "B00YQ6X8EO",
        "parent_asin": "B00PARENT1",
        "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    },
    {
        "rating": 1.0,
        "asin": "B00OTHER02",
        "parent_asin": "B00PARENT1",
        "user_id": "AE2",
        "timestamp": 1589665266052,
    },
]
META_2014 = [
    {
        "asin": "0000031852",
        "title": "Girl's Tutu &amp; Bow",
        "price": 3.17,
        "imUrl": "http://x/y.jpg",
        "related": {"also_bought": ["B00JHONN1S"]},
        "salesRank": {"Toys & Games": 211836},
        "brand": "Coxlures",
        "categories": [["Sports & Outdoors", "Dance"], ["Toys"]],
    },
    {"asin": "9999999999", "title": "Never reviewed"},
]
META_2018 = [
    {
        "category": ["Clothing", "Shirts &amp; Tops"],
        "tech1": "",
        "description": ["Soft.", "Warm."],
        "fit": "",
        "title": "Shirt",
        "also_buy": [],
        "brand": "Knit",
        "feature": ["Cotton", "Blue"],
        "rank": "5 in Clothing",
        "main_cat": "Clothing",
        "price": "$1,024.50",
        "asin": "5120053084",
    },
    {"asin": "5120053084", "title": "The same once more"},
]
META_2023 = {
    "main_category": "All Beauty",
    "title": "Serum",
    "average_rating": 4.8,
    "rating_number": 10,
    "features": ["Light", "Fast"],
    "description": ["A serum.", "For all."],
    "price": None,
    "images": [{"large": "http://x/y.jpg"}],
    "videos": [],
    "store": "Howard",
    "categories": [],
    "details": {"Brand": "LGP", "UPC": "1"},
    "parent_asin": "B00PARENT1",
    "bought_together": None,
}


def write_lines(path, rows, form=json.dumps):
    text = "\n".join(map(form, rows)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


@pytest.mark.parametrize("form", [json.dumps, repr])
@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_2014(tmp_path, form, ending):
    source = AmazonReviews(
        write_lines(tmp_path / f"reviews_Toys_5.{ending}", REVIEWS_2014, form),
        write_lines(tmp_path / f"meta_Toys.{ending}", META_2014, form),
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("A2SUAM1J3GNN3B", "0000013714", 1252800000, 5.0),
        ("A1B2", "0000031852", 1252713600, 2.0),
        ("A1B2", "0000013714", 1252900000, 4.0),
    ]
    assert dataset.items().rows() == [
        ("0000013714", None, None, None, None, None, None),
        (
            "0000031852",
            "Girl's Tutu & Bow",
            "Coxlures",
            "Sports & Outdoors > Dance; Toys",
            "",
            "",
            3.17,
        ),
    ]
    assert dataset.items().columns == [
        "item",
        "title",
        "brand",
        "categories",
        "description",
        "features",
        "price",
    ]
    assert dataset.manifest["name"] == "reviews_Toys_5"
    assert dataset.manifest["time_unit"] == "s"
    assert "form of 2014" in dataset.manifest["source"]
    assert "describes 1 of 2 items (0 repeated" in dataset.manifest["source"]


def test_2018_keeps_the_first_of_repeated_metadata(tmp_path):
    source = AmazonReviews(
        write_lines(tmp_path / "Fashion.json.gz", REVIEWS_2018),
        write_lines(tmp_path / "meta_Fashion.json.gz", META_2018),
        name="fashion",
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("AUI6WTTT0QZYS", "5120053084", 1514764800, 5.0),
        ("A2XYZ", "B00ABCDEFG", 1514851200, 3.0),
    ]
    assert dataset.items().row(0) == (
        "5120053084",
        "Shirt",
        "Knit",
        "Clothing > Shirts & Tops",
        "Soft. Warm.",
        "Cotton Blue",
        1024.5,
    )
    assert dataset.manifest["name"] == "fashion"
    assert "form of 2018" in dataset.manifest["source"]
    assert "describes 1 of 2 items (1 repeated" in dataset.manifest["source"]


def test_2023_items_are_parents_and_times_milliseconds(tmp_path):
    source = AmazonReviews(
        write_lines(tmp_path / "All_Beauty.jsonl", REVIEWS_2023),
        write_lines(tmp_path / "meta_All_Beauty.jsonl", [META_2023]),
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00PARENT1", 1588687728, 5.0),
        ("AE2", "B00PARENT1", 1589665266, 1.0),
    ]
    assert dataset.items().rows() == [
        ("B00PARENT1", "Serum", "Howard", "All Beauty", "A serum. For all.", "Light Fast", None)
    ]
    before = source.fingerprint()
    assert sorted(before) == ["metadata", "reviews"]
    write_lines(tmp_path / "meta_All_Beauty.jsonl", [META_2023, META_2023])
    assert source.fingerprint() != before


def test_polars_and_python_read_the_same(tmp_path):
    rows = [
        {"reviewerID": f"A{n % 7}", "asin": f"B{n % 5}", "overall": n % 5 + 1, "unixReviewTime": n}
        for n in range(200)
    ]
    fast = written(AmazonReviews(write_lines(tmp_path / "a.json", rows)), tmp_path / "d")
    slow = written(AmazonReviews(write_lines(tmp_path / "b.json", rows, repr)), tmp_path / "e")
    assert fast.interactions().equals(slow.interactions())
    assert fast.interactions()["timestamp"].to_list() == list(range(200))


def test_numbers_may_be_texts_and_ratings_may_lack(tmp_path):
    rows = [
        {"reviewerID": "A", "asin": "B", "overall": "4.0", "unixReviewTime": "1514764800"},
        {"reviewerID": "A", "asin": 12, "unixReviewTime": 1514764801.0},
    ]
    dataset = written(AmazonReviews(write_lines(tmp_path / "a.json", rows)), tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("A", "B", 1514764800, 4.0),
        ("A", "12", 1514764801, None),
    ]


def test_min_rating_leaves_out_items_too(tmp_path):
    source = AmazonReviews(write_lines(tmp_path / "a.json", REVIEWS_2014), min_rating=4.0)
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions()["value"].to_list() == [5.0, 4.0]
    assert dataset.items()["item"].to_list() == ["0000013714"]
    assert "ratings of 4 and more" in dataset.manifest["source"]


def test_ratings_of_2023_have_a_header(tmp_path):
    path = tmp_path / "Beauty.csv.gz"
    text = "user_id,parent_asin,rating,timestamp\nAE1,B00PARENT1,5.0,1588687728923\n"
    path.write_bytes(gzip.compress(text.encode()))
    dataset = written(AmazonReviews(str(path)), tmp_path / "d")
    assert dataset.interactions().rows() == [("AE1", "B00PARENT1", 1588687728, 5.0)]


def test_parquet_with_the_same_columns(tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {"user_id": ["u"], "parent_asin": ["i"], "rating": [4], "timestamp": [1588687728923]}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    dataset = written(AmazonReviews(str(tmp_path / "a.parquet")), tmp_path / "d")
    assert dataset.interactions().rows() == [("u", "i", 1588687728, 4.0)]


OLD = "AKM1MP6P0OYPR,0132793040,5.0,1365811200\nA2CX7LUOHB2NDG,0321732944,4.0,1341100800\n"
NEW = "0132793040,AKM1MP6P0OYPR,5.0,1365811200\n0321732944,A2CX7LUOHB2NDG,4.0,1341100800\n"


@pytest.mark.parametrize(
    ("text", "release", "year"),
    [(OLD, "auto", 2014), (NEW, "auto", 2018), (OLD, "2014", 2014), (NEW, "2018", 2018)],
)
def test_ratings_without_header(tmp_path, text, release, year):
    (tmp_path / "ratings_A.csv").write_text(text)
    dataset = written(
        AmazonReviews(str(tmp_path / "ratings_A.csv"), release=release), tmp_path / "d"
    )
    assert dataset.interactions().rows() == [
        ("AKM1MP6P0OYPR", "0132793040", 1365811200, 5.0),
        ("A2CX7LUOHB2NDG", "0321732944", 1341100800, 4.0),
    ]
    assert f"form of {year}" in dataset.manifest["source"]


def test_ratings_that_do_not_tell_their_order(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("u1,i1,5,100\n")
    with pytest.raises(DataError, match="do not tell which holds product codes"):
        AmazonReviews(str(path)).write(tmp_path / "d")
    dataset = written(AmazonReviews(str(path), release="2018"), tmp_path / "d")
    assert dataset.interactions().rows() == [("i1", "u1", 100, 5.0)]


@pytest.mark.parametrize(
    ("text", "release", "message"),
    [
        (OLD, "2018", "does not look like ratings of 2018: its columns are those of 2014"),
        (NEW, "2014", "does not look like ratings of 2014: its columns are those of 2018"),
        (OLD, "2023", "does not look like ratings of 2023"),
        ("a,b,c\n", "auto", r"3 column\(s\) and no known column name"),
        ("user_id,asin,rating,timestamp\nu,i,5,1\n", "auto", "has no column 'parent_asin'"),
        ("user_id,parent_asin,rating,timestamp\nu,i,5,soon\n", "auto", "cannot be read"),
        ("user_id,parent_asin,rating,timestamp\nu,i,good,5\n", "auto", "cannot be read"),
        ("user_id,parent_asin,rating,timestamp\nu,i,nan,5\n", "auto", "not finite"),
        ("user_id,parent_asin,rating,timestamp\nu,,5,5\n", "auto", "have no 'item'"),
        ("user_id,parent_asin,rating,timestamp\n,i,5,5\n", "auto", "have no 'user'"),
        ("user_id,parent_asin,rating,timestamp\nu,i,5,-1\n", "auto", "earliest timestamp is -1"),
        ("user_id,parent_asin,rating,timestamp\nu,i,5,9999999999999\n", "auto", "latest timestamp"),
        ("user_id,parent_asin,rating,timestamp\n", "auto", "the log is empty"),
        ("", "auto", "is empty"),
    ],
)
def test_bad_ratings(tmp_path, text, release, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        AmazonReviews(str(tmp_path / "a.csv"), release=release).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


GOOD = json.dumps(REVIEWS_2014[1]).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b"\n{\n", "cannot be read"),
        (GOOD + b'\n{"reviewerID": "\xff"}\n', "cannot be read"),
        (GOOD + b"\n[1]\n", "cannot be read"),
        (b'{"a": 1}\n', "has no column 'user_id'"),
        (b'{"reviewerID": "A", "item": "B", "unixReviewTime": 1}\n', "has no column 'asin'"),
        (b"hello\n", "line 1 is neither JSON nor a Python literal"),
        (repr(REVIEWS_2014[1]).encode() + b"\nhello\n", "line 2 is neither"),
        (b"{'reviewerID': 1.5, 'asin': 'B', 'unixReviewTime': 1}\n", "1.5 is no id"),
        (b"\n\n", "has no column"),
        (b"", "is empty"),
    ],
)
def test_bad_reviews(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        AmazonReviews(str(tmp_path / "a.json")).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_files_that_cannot_be(tmp_path):
    good = write_lines(tmp_path / "a.json", REVIEWS_2014)
    with pytest.raises(DataError, match="release '2015' is unknown: use auto, 2014"):
        AmazonReviews(good, release="2015")
    with pytest.raises(DataError, match="is a folder"):
        AmazonReviews(str(tmp_path)).write(tmp_path / "d")
    with pytest.raises(DataError, match=r"b\.json does not exist\. Perhaps you meant"):
        AmazonReviews(str(tmp_path / "b.json")).write(tmp_path / "d")
    with pytest.raises(DataError, match="c does not exist"):
        AmazonReviews(good, str(tmp_path / "c")).write(tmp_path / "d")
    with pytest.raises(DataError, match="b does not exist"):
        AmazonReviews(str(tmp_path / "b")).fingerprint()
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="what kind of table"):
        AmazonReviews(str(tmp_path / "a.xlsx")).write(tmp_path / "d")
    whole = gzip.compress(b"\n".join([GOOD] * 500))
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.json\.gz cannot be read"):
        AmazonReviews(str(tmp_path / "cut.json.gz")).write(tmp_path / "d")


def test_metadata_of_another_release_or_broken(tmp_path):
    log = write_lines(tmp_path / "a.json", REVIEWS_2014)
    other = write_lines(tmp_path / "meta.jsonl", [META_2023])
    with pytest.raises(DataError, match=r"meta\.jsonl, line 1: no 'asin' among .*same release"):
        AmazonReviews(log, other).write(tmp_path / "d")
    deep = '{"asin": "0000013714", "title": ' + "[" * 900 + "]" * 900 + "}"
    (tmp_path / "meta.jsonl").write_text(deep)
    with pytest.raises(DataError, match="line 1 holds lists in lists, too deep"):
        AmazonReviews(log, other).write(tmp_path / "d")
    (tmp_path / "meta.jsonl").write_text("{'asin': '0000013714', 'title': 'A'\n")
    with pytest.raises(DataError, match="line 1 is neither JSON nor a Python literal"):
        AmazonReviews(log, other).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_metadata_with_odd_values(tmp_path):
    rows = [
        {
            "asin": "a",
            "title": 7,
            "description": {"x": "y"},
            "price": float("inf"),
            "brand": "\ud800",
        },
        {"asin": "b", "title": ["A", "B"], "categories": "Toys", "details": {"Brand": "Z"}},
    ]
    path = tmp_path / "meta.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_items(path, ["b", "a", "c"], "asin")
    assert found.frame.rows() == [
        ("b", "A, B", "Z", "Toys", "", "", None),
        ("a", "7", "?", "", "x: y", "", None),
        ("c", None, None, None, None, None, None),
    ]
    assert (found.found, found.repeated) == (2, 0)


def test_prices_and_empty_fields():
    prices = {"$12.99": 12.99, " 7 ": 7.0, "$ 1,000": 1000.0, 3: 3.0, "1.2.3": None, "": None}
    assert {value: price_of(value) for value in prices} == prices
    assert [price_of(value) for value in (True, None, [], float("nan"), 10**400)] == [None] * 5
    assert set(item_fields({}).values()) == {"", None}


@pytest.mark.real_data
def test_all_beauty(tmp_path, shared_data):
    """A derived form: the keys of 2023, but for the item's."""
    folder = shared_data / "amazon2023-all-beauty"
    source = AmazonReviews(
        str(folder / "interactions.jsonl"), str(folder / "items.jsonl"), item="item_id"
    )
    dataset = written(source, tmp_path / "d")
    assert dataset.manifest["counts"] == {"interactions": 3315, "users": 357, "items": 479}
    with (folder / "interactions.jsonl").open() as file:
        first = json.loads(file.readline())
    assert dataset.interactions().row(0) == (
        first["user_id"],
        first["item_id"],
        first["timestamp"] // 1000,
        first["rating"],
    )
    assert dataset.items()["title"].null_count() == 0
    assert "describes 479 of 479 items" in dataset.manifest["source"]
