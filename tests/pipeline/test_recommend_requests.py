"""Requests: what a line may be, what it may not, and how ids are looked up."""

import gzip
import io
import os
import threading

import numpy as np
import pytest

from jaxrec.data.errors import DataError
from jaxrec.data.histories import Histories
from jaxrec.pipeline.requests import (
    MAX_LINE,
    Request,
    count_lines,
    find,
    numbered_lines,
    open_requests,
    parse_request,
    resolve,
)

LOG = Histories(
    offsets=np.array([0, 3, 4]),
    item=np.array([2, 0, 2, 1], np.int32),
    time=np.arange(4),
    action=np.zeros(4, np.int32),
    users=np.array(["ann", "7"]),
    items=np.array(["i0", "i1", "50", "é"]),
)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ('{"user": "ann"}', Request("ann", user="ann")),
        ('{"user": 7}', Request("7", user="7")),
        ('{"history": ["i0", 50]}', Request("line 4", history=("i0", "50"))),
        ('["i0", "i0"]', Request("line 4", history=("i0", "i0"))),
        ("[]", Request("line 4")),
        (
            '{"history": [], "id": "me", "count": 3, "exclude": ["i1", 50]}',
            Request("me", count=3, exclude=("i1", "50")),
        ),
        ('{"user": null, "history": ["é"], "count": null}', Request("line 4", history=("é",))),
        ('{"user": "ann", "id": 12}', Request("12", user="ann")),
    ],
)
def test_what_a_request_may_be(line, request_):
    assert parse_request(line, 4) == request_
    assert parse_request(line.encode() + b"\r\n", 4) == request_


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON: "),
        ("[" * 100_000, "it is not JSON: "),
        ('{"history": [' + "1" * 5000 + "]}", "it is not JSON: "),
        ("7", 'it is 7; a request is an object such as {"user": "ID"}'),
        ("null", "it is null; "),
        ('{"usr": "ann"}', "key \"usr\" is unknown; use user, .* Perhaps it is 'user'"),
        ("{}", 'it needs either "user" or "history"'),
        ('{"user": "ann", "history": []}', "not both"),
        ('{"history": "i0"}', '"history" is "i0"; give a list of item ids'),
        ('{"history": ["i0", null]}', '"history" has null; ids are texts or whole numbers'),
        ('{"history": [true]}', '"history" has true; '),
        ('{"history": [1.5]}', '"history" has 1.5; '),
        ('{"history": [NaN]}', '"history" has NaN; '),
        ('{"history": [["i0"]]}', r'"history" has \["i0"\]; '),
        ('{"user": ["ann"]}', '"user" has '),
        ('{"user": "ann", "id": {}}', '"id" has {}; '),
        ('{"user": "ann", "count": "3"}', '"count" is "3"; give a whole number'),
        ('{"user": "ann", "count": true}', '"count" is true; '),
        ('{"user": "ann", "exclude": "i0"}', '"exclude" is "i0"; give a list'),
        (b'{"user": "\xff"}', "it is not UTF-8 .byte 0xff at place 10"),
        ("x" * (MAX_LINE + 1), "it is longer than 1,048,576 bytes"),
    ],
)
def test_what_a_request_may_not_be(line, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_request(line, 1)
    assert len(str(caught.value)) < 300


def test_a_byte_order_mark_is_no_matter():
    assert parse_request(b'\xef\xbb\xbf["i0"]', 1).history == ("i0",)


def test_ids_are_found_as_a_loop_would_find_them():
    asked = ["é", "i0", "none", "i1", "", "i0\0", "i" * 10_000, "50", "\ud800"]
    slow = [LOG.items.tolist().index(each) if each in LOG.items.tolist() else -1 for each in asked]
    assert find(LOG, "items", asked).tolist() == slow
    assert find(LOG, "users", ["7", "ann", "8"]).tolist() == [1, 0, -1]
    assert find(LOG, "items", []).tolist() == []


def test_a_long_id_does_not_widen_the_others():
    """A numpy array of 1,000 texts as wide as this one would have 4 GB."""
    assert set(find(LOG, "items", ["x" * 1_000_000] + ["none"] * 999).tolist()) == {-1}


def asked(request, **changes):
    return resolve(request, LOG, **{"count": 2, "most": 4, "keep_seen": False} | changes)


def test_a_request_becomes_catalogue_rows():
    raw = asked(Request("q", history=("i1", "gone", "50", "i1"), exclude=("é", "gone")))
    assert (raw.items.tolist(), raw.unknown) == ([1, 2, 1], ["gone"])
    assert raw.denied.tolist() == [1, 2, 3]
    assert raw.count == 2
    of_user = asked(Request("ann", user="ann", count=4))
    assert (of_user.items.tolist(), of_user.unknown) == ([2, 0, 2], [])
    assert (of_user.denied.tolist(), of_user.count) == ([0, 2], 4)
    kept = asked(Request("ann", user="ann", exclude=("i1",)), keep_seen=True)
    assert kept.denied.tolist() == [1]
    nobody = asked(Request("new"))
    assert (nobody.items.tolist(), nobody.denied.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("q", user="bob"), "the log does not know user bob; it knows for example ann, 7"),
        (Request("q", history=("a", "b")), "has none of the items a, b; it has for example i0, i1"),
        (Request("q", history=tuple("abcdefg")), "a, b, c, d, e and 2 more"),
        (Request("q", user="x" * 999), r"user x{60}\.\.\.;"),
        (Request("q", count=0), "count=0 is not possible: this run decodes 1 to 4 items"),
        (Request("q", count=5), "count=5 is not possible"),
    ],
)
def test_what_cannot_be_resolved_is_said(request_, message):
    with pytest.raises(DataError, match=message):
        asked(request_)


def test_lines_keep_their_numbers_over_blank_and_endless_ones():
    endless = b"x" * (3 * MAX_LINE + 5)
    lines = dict(numbered_lines(io.BytesIO(b"[1]\n\n" + endless + b"\r\n  \n[2]")))
    assert list(lines) == [1, 3, 5]
    assert lines[1] == b"[1]\n"
    assert lines[5] == b"[2]"
    with pytest.raises(DataError, match="longer than"):
        parse_request(lines[3], 3)


def test_a_line_comes_before_the_next_is_written():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", buffering=0) as pipe:
        lines = numbered_lines(file)
        for number in (1, 2):
            pipe.write(b"[]\n")
            assert next(lines) == (number, b"[]\n")


def test_compressed_files_and_pipes_are_read(tmp_path):
    packed = tmp_path / "requests.jsonl.gz"
    packed.write_bytes(gzip.compress(b"[1]\n[2]\n"))
    with open_requests(str(packed)) as file:
        assert [line for _, line in numbered_lines(file)] == [b"[1]\n", b"[2]\n"]
    assert count_lines(str(packed)) is None

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"[3]\n"))
    writer.start()
    with open_requests(str(pipe)) as file:
        assert list(numbered_lines(file)) == [(1, b"[3]\n")]
    writer.join()
    assert count_lines(str(pipe)) is None

    plain = tmp_path / "requests.jsonl"
    plain.write_bytes(b"[1]\n[2]\n")
    assert count_lines(str(plain)) == 2
    assert count_lines("-") is None


def test_damaged_compression_is_said_where_it_begins(tmp_path):
    cut = tmp_path / "cut.gz"
    whole = b"".join(b'["i%d"]\n' % number for number in range(20_000))
    cut.write_bytes(gzip.compress(whole)[:-2000])
    seen = []
    with open_requests(str(cut)) as file, pytest.raises(DataError, match=r"cut\.gz cannot be read"):
        seen.extend(number for number, _ in numbered_lines(file, str(cut)))
    assert seen
    assert seen == list(range(1, len(seen) + 1))
    (tmp_path / "no.gz").write_bytes(b"[1]\n")
    with (
        open_requests(str(tmp_path / "no.gz")) as file,
        pytest.raises(DataError, match="requests cannot be read"),
    ):
        list(numbered_lines(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "does not exist"), ("empty", "is empty"), ("folder", "is a folder")],
)
def test_a_source_that_is_none_is_refused(tmp_path, name, message):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message), open_requests(str(tmp_path / name)):
        pass
