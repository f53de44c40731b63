import pytest

from jaxrec.data.dataset import DataError, read_dataset
from jaxrec.data.datasets.jdsearch import JdSearch
from jaxrec.data.histories import prepare
from jaxrec.data.pages import check_pages, page_summary, prepare_pages

HEADER = (
    "query\tcandidate_wid_list\tcandidate_label_list\thistory_qry_list\thistory_wid_list\t"
    "history_type_list\thistory_time_list\n"
)
LINES = (
    "1\x182\t45_46_47\t3.0_0.0_1.0\t5\x186_-1_7\t88_45_89\tORD_FLW_CART\t0_12_0_5\n"
    "9\t46\t2.0\t\t\t\t0\n"
)
PRODUCTS = (
    "45\t5\x186\tb\t3\tc\t1\x182\tc\t3\tc\t\tc\t4\ts\n99\tn\tb\t3\tc\t1\tc\t3\tc\t\tc\t4\ts\n"
)


def write_files(folder, lines=HEADER + LINES, products=PRODUCTS):
    folder.mkdir(exist_ok=True)
    (folder / "release_data.txt").write_text(lines)
    if products is not None:
        (folder / "product_data.txt").write_text(products)
    return str(folder)


def written(source, folder):
    source.write(folder)
    return read_dataset(folder)


@pytest.mark.parametrize("header", [HEADER, ""])
def test_a_line_is_a_history_and_a_page(tmp_path, header):
    source = JdSearch(write_files(tmp_path / "a", header + LINES))
    dataset = written(source, tmp_path / "d")
    assert dataset.interactions().rows() == [
        ("1", "88", 0, "order", None, None, None, "5 6"),
        ("1", "45", 12, "follow", None, None, None, None),
        ("1", "89", 12, "cart", None, None, None, "7"),
        ("1", "45", 17, "order", "1:1", 0, 3.0, "1 2"),
        ("1", "46", 17, "exposed", "1:1", 1, 0.0, "1 2"),
        ("1", "47", 17, "click", "1:1", 2, 1.0, "1 2"),
        ("2", "46", 0, "cart", "2:2", 0, 2.0, "9"),
    ]
    assert dataset.manifest["time_unit"] == "order"
    assert dataset.manifest["grades"] == ["exposed", "click", "follow", "cart", "order"]
    assert dataset.items().rows() == [
        ("88", None, None, None, None),
        ("45", "5 6", "3", "1 2 > 3 > 4", "s"),
        ("89", None, None, None, None),
        ("46", None, None, None, None),
        ("47", None, None, None, None),
    ]
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    assert pages.time.tolist() == [0, 17]
    assert [pages.history(page, histories) for page in (0, 1)] == [slice(5, 5), slice(0, 3)]
    assert sorted(source.fingerprint()) == ["product_data.txt", "release_data.txt"]


def test_without_products(tmp_path):
    path = write_files(tmp_path / "a", LINES, None)
    dataset = written(JdSearch(path + "/release_data.txt"), tmp_path / "d")
    assert dataset.items().columns == ["item"]
    assert list(JdSearch(path).fingerprint()) == ["release_data.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t45\t0.0\t\t\t\n", "line 3 has 6 cells, and must have 7: query, candidate"),
        ("1\t45\t0.0_1.0\t\t\t\t0\n", "1 candidates and 2 labels"),
        ("1\t45\t0.0\t1_2\t3\tCART\t0_1\n", "2 queries, 1 products and 1 types"),
        ("1\t45\t0.0\t1\t3\tCART\t0\n", "1 gaps of time for 1 events of the history and the query"),
        ("1\t45\t0.0\t1\t3\tSELL\t0_1\n", "'SELL' is none of CLICK, FLW, CART, ORD"),
        ("1\t45\t4.0\t\t\t\t0\n", r"4\.0 is none of 0\.0, 1\.0, 2\.0, 3\.0"),
        ("1\t45\tnan\t\t\t\t0\n", "nan is none of"),
        ("1\t45\tgood\t\t\t\t0\n", "label 'good' is not a number"),
        ("1\t45\t0.0\t\t\t\t-3\n", "a whole number from 0 on, not '-3'"),
        ("1\t45\t0.0\t\t\t\t1.5\n", "a whole number from 0 on, not '1.5'"),
        ("1\t45\t0.0\t\t\t\t9999999999999999\n", "which is no time of a log"),
        ("1\t45_\t0.0_0.0\t\t\t\t0\n", "have no 'item'"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = write_files(tmp_path / "a", LINES + line)
    with pytest.raises(DataError, match=message):
        JdSearch(path).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ("45\tname\n", "has 2 columns, and must have 13: wid, name"),
        (PRODUCTS + PRODUCTS, "product '45' has two rows"),
        ("", "product_data.txt is empty"),
    ],
)
def test_bad_products(tmp_path, products, message):
    path = write_files(tmp_path / "a", LINES, products)
    with pytest.raises(DataError, match=message):
        JdSearch(path).write(tmp_path / "d")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="has no release_data"):
        JdSearch(str(tmp_path)).write(tmp_path / "d")
    with pytest.raises(DataError, match="does not exist"):
        JdSearch(str(tmp_path / "x.txt")).fingerprint()


def test_text_that_is_not_utf8(tmp_path):
    path = write_files(tmp_path / "a")
    (tmp_path / "a/release_data.txt").write_bytes(LINES.encode() + b"\xff\n")
    with pytest.raises(DataError, match="line 3 is not UTF-8"):
        JdSearch(path).write(tmp_path / "d")


@pytest.mark.real_data
def test_the_real_sample(tmp_path, shared_data):
    dataset = written(JdSearch(str(shared_data / "jdsearch-sample")), tmp_path / "d")
    assert dataset.manifest["counts"] == {"interactions": 492, "users": 3, "items": 421}
    histories = prepare(dataset)
    pages = prepare_pages(dataset, histories)
    check_pages(pages, histories)
    summary = page_summary(pages)
    assert (summary["pages"], summary["exposures"], summary["max_size"]) == (3, 262, 90)
    assert summary["graded"] == {"exposed": 257, "click": 5, "follow": 0, "cart": 0, "order": 0}
    # Before their pages the three users had done 182, 46 and 2 things.
    assert sorted(
        pages.history(page, histories).stop - pages.history(page, histories).start
        for page in range(3)
    ) == [2, 46, 182]
