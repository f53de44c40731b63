"""ranks.npz: what is written is read, and nothing else is."""

import dataclasses
import zipfile

import numpy as np
import pytest

from jaxrec.evaluation.ranks import CaseRanks, fingerprint_cases, read_ranks, write_ranks

ROWS = (("popularity", "item", True), ("generator", "sid", False))


@pytest.fixture
def ranks():
    return CaseRanks(
        fingerprint_cases([("u", "a", 2), ("u", "b", 3), ("v", "a", 1)]),
        np.array([0, 0, 1], np.int32),
        ROWS,
        np.array([[1, 0, 7], [2, 2, 0]], np.int32),
    )


def test_what_is_written_is_read(tmp_path, ranks):
    path = write_ranks(tmp_path, ranks)
    assert path.name == "ranks.npz"
    found = read_ranks(tmp_path, ranks.fingerprint)
    assert (found.cases, found.rows) == (ranks.cases, ranks.rows)
    np.testing.assert_array_equal(found.rank, ranks.rank)
    np.testing.assert_array_equal(found.user, ranks.user)
    assert found.of("generator", "sid", False).tolist() == [2, 2, 0]
    assert found.of("generator", "item", False) is None
    assert [each.name for each in tmp_path.iterdir()] == ["ranks.npz"]


def test_equal_ranks_give_equal_bytes(tmp_path, ranks):
    a, b = (write_ranks(tmp_path / name, ranks).read_bytes() for name in "ab")
    assert a == b


def test_fingerprints_tell_contents_apart(ranks):
    others = [
        dataclasses.replace(ranks, cases="other"),
        dataclasses.replace(ranks, user=np.array([0, 1, 1], np.int32)),
        dataclasses.replace(ranks, rank=ranks.rank + np.int32(1)),
        dataclasses.replace(ranks, rows=(ROWS[0], ("generator", "sid", True))),
    ]
    assert len({ranks.fingerprint, *(each.fingerprint for each in others)}) == 5
    cases = [("u", "a", 2), ("v", "b", 3)]
    assert fingerprint_cases(cases) != fingerprint_cases(cases[::-1])
    assert fingerprint_cases([("u1", "a", 2)]) != fingerprint_cases([("u", "1a", 2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROWS[:1]}, r"have the shape \(1, 3\), got \(2, 3\)"),
        ({"rank": np.full((2, 3), -1, np.int32)}, "from 1; got -1"),
        ({"rows": (ROWS[0], ROWS[0])}, "twice"),
        ({"rows": (ROWS[0], ("m", "list", True))}, r"Unknown level \['list'\]"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ranks, **change)


def test_a_file_cut_or_changed_anywhere_is_refused(tmp_path, ranks):
    path = write_ranks(tmp_path, ranks)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"ranks\.npz is damaged"):
            read_ranks(tmp_path, ranks.fingerprint)
    refused = 0
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_ranks(tmp_path, ranks.fingerprint)
        except ValueError as error:
            assert "jaxrec evaluate" in str(error)  # noqa: PT017
            refused += 1
        else:
            # A changed time stamp inside the archive changes no number.
            np.testing.assert_array_equal(found.rank, ranks.rank)
    assert refused > 50


def test_other_files_are_refused(tmp_path, ranks):
    path = tmp_path / "ranks.npz"
    with pytest.raises(ValueError, match=r"does not exist.*jaxrec evaluate"):
        read_ranks(tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    path.write_bytes((tmp_path / "one.npy").read_bytes())
    with pytest.raises(ValueError, match="no npz archive"):
        read_ranks(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "hello")
    with pytest.raises(ValueError, match="is damaged"):
        read_ranks(tmp_path)
    np.savez(path, cases=np.array("c"), user=np.array([{}], object))
    with pytest.raises(ValueError, match="is damaged"):
        read_ranks(tmp_path)
    parts = {
        "cases": np.array("c"), "user": np.zeros(3, np.int32), "method": np.array(["m"]),
        "level": np.array(["item"]), "seen_masked": np.array([True]), "rank": np.zeros((1, 3)),
    }  # fmt: skip
    np.savez(path, **parts)
    with pytest.raises(ValueError, match=r"rank is float64\[1, 3\]"):
        read_ranks(tmp_path)
    write_ranks(tmp_path, ranks)
    with pytest.raises(ValueError, match=r"not the one that report\.json was written with"):
        read_ranks(tmp_path, "another")
