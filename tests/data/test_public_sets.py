import dataclasses
import hashlib
import importlib
import re
import subprocess
import urllib.parse

import pytest
from file_server import Site, serving
from small_archives import files_in, zip_of

from jaxrec import cli
from jaxrec.commands import data_fetch
from jaxrec.data import public, unpack
from jaxrec.data.errors import DataError
from jaxrec.data.fetch import check_address
from jaxrec.data.public import SETS, find_set
from jaxrec.data.public_set import PublicFile, PublicSet


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_every_set_is_whole():
    assert len({each.name for each in SETS}) == len(SETS)
    for each in SETS:
        assert bool(each.files) != bool(each.manual), each.name
        assert all((each.title, each.licence, each.citation, each.format)), each.name
        assert each.homepage.startswith("https://"), each.name
        assert len({file.name for file in each.files}) == len(each.files)


@pytest.mark.parametrize(
    "file", [file for each in SETS for file in each.files], ids=lambda file: file.url.split("/")[-1]
)
def test_every_file_is_well_formed(file):
    check_address(file.url, allow_http=False)
    assert urllib.parse.urlsplit(file.url).scheme == "https"
    for value, digits in ((file.sha256, 64), (file.md5, 32), (file.git_blob, 40)):
        assert value is None or re.fullmatch(rf"[0-9a-f]{{{digits}}}", value)
    assert (file.unpack_to is not None) == (file.limit > 0)
    assert file.unpack_to is None or file.limit > (file.size or 0)
    unpack.safe_path(file.name, "the table")


@pytest.mark.parametrize(
    "chosen", list({each.format: each for each in SETS}.values()), ids=lambda each: each.format
)
def test_the_import_command_is_one_that_exists(chosen):
    module = importlib.import_module(f"jaxrec.data.datasets.{chosen.format}")
    readers = [
        reader
        for reader in vars(module).values()
        if dataclasses.is_dataclass(reader)
        and getattr(reader, "write", None)
        and getattr(reader, "__module__", "") == module.__name__
    ]
    (reader,) = readers
    fields = {field.name for field in dataclasses.fields(reader)}
    flags = {flag.removeprefix("--") for flag in chosen.flags if flag.startswith("--")}
    assert flags <= fields - {"path"}


def test_find_set():
    assert find_set("MovieLens_1M").name == "movielens-1m"
    with pytest.raises(DataError, match="Perhaps you meant movielens-1m"):
        find_set("movilens1m")
    with pytest.raises(DataError, match="amazon2014-beauty"):
        find_set("amazon2014")
    with pytest.raises(DataError, match="there is no public data set 'xyzzy'"):
        find_set("xyzzy")


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """A public set of one zip and one table, served from this machine."""
    archive = zip_of(tmp_path / "small.zip", ("ratings.dat", b"1::10::5::100\n2::20::3::200\n"))
    content = archive.read_bytes()
    archive.unlink()
    with serving(Site(content)) as running:
        files = (
            PublicFile(
                f"{running.url}small.zip",
                "small.zip",
                sha256=hashlib.sha256(content).hexdigest(),
                unpack_to="files",
                limit=99,
            ),
            PublicFile(f"{running.url}copy.bin", "copy.bin"),
        )
        chosen = PublicSet(
            name="small",
            title="two ratings",
            licence="none at all",
            citation="Nobody. Nothing.",
            homepage="https://data.example/",
            format="tables",
            path="files/ratings.csv",
            flags=("--value", "rating"),
            files=files,
            prepare=find_set("movielens-1m").prepare[:1],
        )
        shelf = {"small": chosen, "asks": dataclasses.replace(chosen, name="asks", terms="T")}
        monkeypatch.setattr(public, "find_set", shelf.__getitem__)
        yield running, chosen


def test_command_fetches_and_says_what_is_next(small_set, tmp_path, capsys):
    folder = tmp_path / "a folder"
    assert cli.main(["data", "fetch", "small", "--to", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.index("none at all") < out.index("fetched,")
    assert out.index("Nobody. Nothing.") < out.index("fetched,")
    assert "small.zip: fetched, " in out
    assert "checksum is the published one" in out
    assert "no published checksum; recorded on first use" in out
    assert f"jaxrec data import tables '{folder}/files/ratings.csv' --value rating --out" in out
    assert files_in(folder / "files") == {"ratings.dat": b"1::10::5::100\n2::20::3::200\n"}
    assert cli.main(["data", "fetch", "small", "--to", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "there already" in out
    assert "equal to the one recorded on first use" in out


def test_default_folder_is_in_the_cache(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    assert cli.main(["data", "fetch", "small"]) == 0
    assert (tmp_path / "cache" / "data" / "small" / "small.zip").is_file()


def test_mirror(small_set, tmp_path):
    site, _ = small_set
    with serving(Site(site.content)) as other:
        words = ["data", "fetch", "small", "--to", str(tmp_path / "m"), "--mirror", other.url]
        assert cli.main(words) == 0
        assert (len(other.asked), site.asked) == (2, [])
    assert cli.main(["data", "fetch", "small", "--mirror", "http://data.example/"]) == 2


def test_terms_must_be_accepted(small_set, tmp_path, capsys):
    site, _ = small_set
    assert cli.main(["data", "fetch", "asks", "--to", str(tmp_path / "t")]) == 2
    assert "jaxrec data fetch asks --accept" in capsys.readouterr().out
    assert (site.asked, (tmp_path / "t").exists()) == ([], False)
    assert cli.main(["data", "fetch", "asks", "--to", str(tmp_path / "t"), "--accept"]) == 0


def test_sets_to_fetch_by_hand(tmp_path, capsys):
    for name in ("retailrocket", "trivago", "jdsearch", "p5", "grid", "lcrec"):
        assert cli.main(["data", "fetch", name, "--to", str(tmp_path / "x")]) == 2
        out = capsys.readouterr().out
        assert "cannot be fetched by a program" in out
        assert f"{tmp_path}/x" in out
        assert "{folder}" not in out
        assert f"jaxrec data import {find_set(name).format} {tmp_path}/x" in out
    assert not (tmp_path / "x").exists()


def test_listing_and_mistakes(capsys):
    assert cli.main(["data", "fetch"]) == 0
    out = capsys.readouterr().out
    for each in SETS:
        shown = each.name.removeprefix(f"{each.family}-") if each.family else each.name
        assert shown in out, each.name
    assert all(len(line) <= 100 for line in out.splitlines())
    assert cli.main(["data", "fetch", "kuairand"]) == 2
    assert "kuairand-pure" in capsys.readouterr().err


def test_preparation_commands(tmp_path):
    """The shell commands that are printed do what the reader needs."""
    hundred, million = find_set("movielens-100k"), find_set("movielens-1m")
    (tmp_path / "files/ml-100k").mkdir(parents=True)
    (tmp_path / "files/ml-1m").mkdir()
    (tmp_path / "files/ml-100k/u.data").write_text("196\t242\t3\t881250949\n")
    (tmp_path / "files/ml-1m/ratings.dat").write_text("1::1193::5::978300760\n")
    (tmp_path / "files/ml-1m/movies.dat").write_bytes(
        'Ünder::Café "Society": A, B (1999)::Drama|War\n'.encode("latin-1")
    )
    for command in (*hundred.prepare, *million.prepare):
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "files/ml-100k/ratings.tsv").read_text() == (
        "user\titem\trating\ttimestamp\n196\t242\t3\t881250949\n"
    )
    assert (tmp_path / "files/ml-1m/ratings.csv").read_text() == (
        "user,item,rating,timestamp\n1,1193,5,978300760\n"
    )
    assert (tmp_path / "files/ml-1m/movies.tsv").read_text() == (
        "item\ttitle\tgenres\nÜnder\tCafé Society: A, B (1999)\tDrama|War\n"
    )
    assert data_fetch.next_steps(million, tmp_path).count("(cd ") == 2
