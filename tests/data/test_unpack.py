import errno
import gzip
import os
import random
import tarfile
import zipfile

import pytest
from small_archives import files_in, tar_of, zip_of

from jaxrec.data import unpack
from jaxrec.data.errors import DataError

CONTENT = random.Random(0).randbytes(300_000)


def test_unpack(tmp_path):
    members = [("./data/log.csv", b"a,b\n"), ("data/deep/x", b"x"), ("readme", b"")]
    expected = {"data/log.csv": b"a,b\n", "data/deep/x": b"x", "readme": b""}
    for archive in (
        zip_of(tmp_path / "a.zip", ("data/", b""), *members),
        tar_of(tmp_path / "a.tar.gz", ("data", tarfile.DIRTYPE, ""), *members),
    ):
        folder = unpack.unpack(archive, tmp_path / f"{archive.name}.d", limit=5)
        assert files_in(folder) == expected
    only = unpack.unpack(tmp_path / "a.zip", tmp_path / "only", ["data/log.csv"], limit=4)
    assert files_in(only) == {"data/log.csv": b"a,b\n"}
    with pytest.raises(DataError, match="has no member 'nothing'"):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "none", ["nothing"], limit=9)
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"a,b\n"))
    assert files_in(unpack.unpack(tmp_path / "log.csv.gz", tmp_path / "gz", limit=4)) == {
        "log.csv": b"a,b\n"
    }


def test_unpacked_again_only_when_the_archive_changed(tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("x", b"1"))
    folder = unpack.unpack(archive, tmp_path / "d", limit=9)
    before = folder.stat().st_ino
    assert unpack.unpack(archive, folder, limit=9).stat().st_ino == before
    zip_of(archive, ("y", b"2"))
    assert files_in(unpack.unpack(archive, folder, limit=9)) == {"y": b"2"}


def test_folder_of_the_user_is_not_replaced(tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("x", b"1"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("precious")
    with pytest.raises(DataError, match="was not unpacked by jaxrec"):
        unpack.unpack(archive, tmp_path / "d", limit=9)
    with pytest.raises(DataError, match="was not unpacked by jaxrec"):
        unpack.unpack(archive, tmp_path / "d" / "mine", limit=9)
    assert (tmp_path / "d" / "mine").read_text() == "precious"


def special(kind):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    return info


BAD_NAMES = ["../out", "a/../../out", "/tmp/out", "C:/out", "a\\..\\out", "..", unpack.MARKER, "/"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_names_that_lead_out(tmp_path, name, kind):
    make = zip_of if kind == "zip" else tar_of
    archive = make(tmp_path / f"a.{kind}", ("good", b"1"), (name, b"2"))
    with pytest.raises(DataError, match="outside the folder"):
        unpack.unpack(archive, tmp_path / "d" / "e", limit=99)
    assert [path.name for path in tmp_path.rglob("*")] in ([archive.name, "d"], ["d", archive.name])


@pytest.mark.parametrize(
    "make",
    [
        lambda path: tar_of(path / "a.tar.gz", ("l", tarfile.SYMTYPE, "/etc/passwd")),
        lambda path: tar_of(path / "a.tar.gz", ("l", tarfile.LNKTYPE, "../../x")),
        lambda path: tar_of(path / "a.tar.gz", ("l", tarfile.CHRTYPE, "")),
        lambda path: tar_of(path / "a.tar.gz", ("l", tarfile.FIFOTYPE, "")),
        lambda path: zip_of(path / "a.zip", (special(0o120000), b"/etc/passwd")),
        lambda path: zip_of(path / "a.zip", (special(0o010000), b"")),
    ],
    ids=["symlink", "hardlink", "device", "fifo", "zip-symlink", "zip-fifo"],
)
def test_links_and_devices(tmp_path, make):
    with pytest.raises(DataError, match="link or a device"):
        unpack.unpack(make(tmp_path), tmp_path / "d", limit=99)
    assert not (tmp_path / "d").exists()


def test_bombs(tmp_path):
    zeros = bytes(3_000_000)
    archives = [
        zip_of(tmp_path / "a.zip", ("x", zeros[:1_000_000]), ("y", zeros)),
        tar_of(tmp_path / "a.tar.gz", ("x", zeros)),
        tmp_path / "x.gz",
    ]
    archives[-1].write_bytes(gzip.compress(zeros))
    for archive in archives:
        assert archive.stat().st_size < 10_000
        with pytest.raises(DataError, match="more than the 2,000,000 bytes"):
            unpack.unpack(archive, tmp_path / "d", limit=2_000_000)
    assert not (tmp_path / "d").exists()


def test_header_that_lies_about_the_size(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", ("x", bytes(3_000_000)))
    real = unpack._zip_members
    monkeypatch.setattr(
        unpack, "_zip_members", lambda path: ((name, 1, opened) for name, _, opened in real(path))
    )
    with pytest.raises(DataError, match="more than the 2,000,000 bytes"):
        unpack.unpack(archive, tmp_path / "d", limit=2_000_000)


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 3)
    archive = zip_of(tmp_path / "a.zip", *((str(number), b"") for number in range(4)))
    with pytest.raises(DataError, match="more than 3 members"):
        unpack.unpack(archive, tmp_path / "d", limit=9)


def test_damaged_archives(tmp_path):
    good = tar_of(tmp_path / "good.tar.gz", ("x", CONTENT)).read_bytes()
    zipped = zip_of(tmp_path / "good.zip", ("x", CONTENT)).read_bytes()
    turned = bytearray(zipped)
    turned[1000] ^= 255
    for name, content in {
        "cut.tar.gz": good[:-5000],
        "text.tar.gz": b"no archive",
        "empty.tar.gz": b"",
        "cut.zip": zipped[:-100],
        "turned.zip": bytes(turned),
        "cut.gz": gzip.compress(CONTENT)[:-5000],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            unpack.unpack(tmp_path / name, tmp_path / "d", limit=10**9)
    assert not (tmp_path / "d").exists()


def test_other_bad_archives(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zip_of(tmp_path / "a.zip", ("x", b"1"), ("x", b"2"))
    with pytest.raises(DataError, match="'x' is there twice"):
        unpack.unpack(twice, tmp_path / "d", limit=9)
    both = zip_of(tmp_path / "b.zip", ("x", b"1"), ("x/y", b"2"))
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack.unpack(both, tmp_path / "d", limit=9)
    locked = bytearray(zip_of(tmp_path / "c.zip", ("x", b"1")).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "c.zip").write_bytes(locked)
    with pytest.raises(DataError, match="encrypted"):
        unpack.unpack(tmp_path / "c.zip", tmp_path / "d", limit=9)
    (tmp_path / "x.rar").write_bytes(b"1")
    with pytest.raises(DataError, match="is no archive"):
        unpack.unpack(tmp_path / "x.rar", tmp_path / "d", limit=9)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack.unpack(tmp_path / "missing.zip", tmp_path / "d", limit=9)
    assert not (tmp_path / "d").exists()


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", ("x", b"1"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpack, "_copy", full)
    with pytest.raises(DataError, match="No space left on device"):
        unpack.unpack(archive, tmp_path / "d", limit=9)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
