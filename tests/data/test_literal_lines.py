"""Python literals are read, never run; ids and sequences are checked one by one."""

import gzip

import pytest

from jaxrec.data.dataset import DataError
from jaxrec.data.id_sequences import bare_items, id_of, only_name, order_log, read_item_objects
from jaxrec.data.literal_lines import literal, literal_lines


def test_both_kinds_of_lines_and_what_is_skipped(tmp_path):
    path = tmp_path / "meta.json.gz"
    with gzip.open(path, "wt") as file:
        file.write(
            "{'asin': 'B1', 'title': \"Chef's \\d knife\", 'price': 3.5, 'related': None}\n\n"
        )
        file.write('{"asin": "B2", "title": null, "1": [true]}\n{1: 2}\n')
    assert list(literal_lines(path)) == [
        (1, {"asin": "B1", "title": "Chef's \\d knife", "price": 3.5, "related": None}),
        (3, {"asin": "B2", "title": None, "1": [True]}),
        (4, {"1": 2}),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "__import__('os').system('true')",
        "{'a': open('x')}",
        "{'a': nan}",
        "[" * 1000,
        "-" * 100_000 + "1",
        "1+" * 100_000 + "1",
        "{[]: 1}",
        "9" * 5000,
        "{'a': 1",
        "\x00",
    ],
)
def test_nothing_else_is_a_literal(tmp_path, line):
    with pytest.raises(DataError, match="here is not a Python literal"):
        literal(line, "here")
    path = tmp_path / "meta.json"
    path.write_text("{'a': 1}\n" + line + "\n")
    with pytest.raises(DataError, match=r"meta\.json, line 2 is neither JSON nor a Python"):
        list(literal_lines(path))


def test_a_line_that_is_no_dictionary(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text("['a']\n")
    with pytest.raises(DataError, match="line 1 is neither a JSON object nor a Python dictionary"):
        list(literal_lines(path))


@pytest.mark.parametrize("value", [None, 1.5, True, "", [], {}])
def test_what_is_no_id(value):
    with pytest.raises(DataError, match="is no id; ids are texts or whole numbers"):
        id_of(value, "log")


def test_half_a_surrogate_pair_is_no_id():
    assert id_of("caf\u00e9 \U0001f600", "log") == "caf\u00e9 \U0001f600"
    with pytest.raises(DataError, match="half a surrogate pair"):
        id_of("a\ud800", "log")


def test_order_log():
    log = order_log([("u", [3, "x", 3]), (7, [1])], "log")
    assert log.rows() == [("u", "3", 0), ("u", "x", 1), ("u", "3", 2), ("7", "1", 0)]
    assert [str(kind) for kind in log.dtypes] == ["String", "String", "Int64"]
    for bad in ([], "ab", None, {"a": 1}):
        with pytest.raises(DataError, match="history of user 'u' must be a list of at least one"):
            order_log([("u", bad)], "log")
    with pytest.raises(DataError, match="user '1' has two histories"):
        order_log([(1, ["a"]), ("1", ["b"])], "log")


def test_bare_items_are_in_the_order_of_numbers_or_of_the_log():
    assert bare_items(order_log([(0, [10, 9, 2, 10])], "log")) == {"item": ["2", "9", "10"]}
    assert bare_items(order_log([(0, [10, "b", 2])], "log")) == {"item": ["10", "b", "2"]}


def test_item_objects(tmp_path):
    path = tmp_path / "item.json"
    path.write_text('{"1": {"title": "A", "item": "no"}, "0": {"brand": "B"}}')
    assert read_item_objects(path) == {
        "item": ["1", "0"],
        "title": ["A", ""],
        "brand": ["", "B"],
    }
    path.write_text('{"1": {"title": "a\\ud800b"}}')
    with pytest.raises(DataError, match="half a surrogate pair"):
        read_item_objects(path)
    path.write_text('{"1": {"title": ' + "[" * 900 + "]" * 900 + "}}")
    with pytest.raises(DataError, match="lists in lists, too deep"):
        read_item_objects(path)
    path.write_text('{"1": {"price": 1' + "0" * 400 + "}}")
    assert read_item_objects(path)["price"] == ["1" + "0" * 400]
    path.write_text('{"1": "A"}')
    with pytest.raises(DataError, match="item '1' must be an object of fields"):
        read_item_objects(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="describes not one item"):
        read_item_objects(path)


def test_only_name(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        only_name(tmp_path / "x", ".inter.json", "name")
    with pytest.raises(DataError, match=r"has no file \*\.inter\.json"):
        only_name(tmp_path, ".inter.json", "name")
    (tmp_path / "A.inter.json").touch()
    assert only_name(tmp_path, ".inter.json", "name") == "A"
    (tmp_path / "B.inter.json").touch()
    with pytest.raises(DataError, match="of A, B; choose one with name"):
        only_name(tmp_path, ".inter.json", "name")
