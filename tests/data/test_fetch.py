import errno
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from file_server import Site, serving

from jaxrec.data import fetch
from jaxrec.data.checksums import digest_of, head_complaint
from jaxrec.data.errors import DataError
from jaxrec.data.fetch import check_address, download

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JAXREC_PROGRESS", "0")


@pytest.fixture
def site():
    with serving(Site(CONTENT)) as running:
        yield running


def get(site, folder, name="log.bin", **options):
    options = {"timeout": 5.0, "retries": 2, "pause": 0.0} | options
    return download(site.url + name, folder / name, **options)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def leave_part(site, folder, kept, **notes):
    """A part as a killed process leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "log.bin.part").write_bytes(CONTENT[:kept])
    found = {"url": site.url + "log.bin", "size": len(CONTENT), "etag": '"one"', "modified": ""}
    (folder / "log.bin.part.json").write_text(json.dumps(found | notes))


def test_whole_file_with_published_checksum(site, tmp_path):
    fetched = get(site, tmp_path, sha256=SHA256, size=len(CONTENT))
    assert fetched == fetch.Fetched(tmp_path / "log.bin", 300_000, SHA256, "published", True)
    assert (tmp_path / "log.bin").read_bytes() == CONTENT
    assert visible(tmp_path) == ["log.bin", "log.bin.fetched.json"]
    record = json.loads((tmp_path / "log.bin.fetched.json").read_text())
    assert {k: v for k, v in record.items() if k != "time"} == {
        "url": site.url + "log.bin",
        "sha256": SHA256,
        "bytes": 300_000,
        "etag": '"one"',
    }
    again = get(site, tmp_path, sha256=SHA256)
    assert (again.new, again.checked, site.asked) == (False, "published", [""])


def test_all_kinds_of_checksums(site, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    blob = hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest()
    get(site, tmp_path, sha256=SHA256.upper(), md5=md5, git_blob=blob)
    # What git itself says of the six bytes "hello\n".
    (tmp_path / "hello").write_text("hello\n")
    assert digest_of(tmp_path / "hello", "git_blob") == "ce013625030ba8dba906f756967f9e9ca394464a"
    for name, value in (("md5", md5), ("git_blob", blob), ("sha256", SHA256)):
        wrong = ("0" if value[0] != "0" else "1") + value[1:]
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=f"its {name} is {value}, not {wrong}"):
            get(site, tmp_path / name, **{name: wrong})
        assert visible(tmp_path / name) == []


def test_resumes_where_it_stopped(site, tmp_path):
    leave_part(site, tmp_path, 100_000)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["bytes=100000-"]
    assert (tmp_path / "log.bin").read_bytes() == CONTENT
    assert visible(tmp_path) == ["log.bin", "log.bin.fetched.json"]


def test_resumes_by_date_without_tag(site, tmp_path):
    site.etag, site.modified = "", "Wed, 21 Oct 2015 07:28:00 GMT"
    leave_part(site, tmp_path, 7, etag="", modified=site.modified)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["bytes=7-"]


def test_complete_part_is_only_checked(site, tmp_path):
    leave_part(site, tmp_path, len(CONTENT))
    assert get(site, tmp_path, sha256=SHA256).new
    assert site.asked == []


def test_server_without_ranges_sends_it_all_again(site, tmp_path):
    site.ranges = False
    leave_part(site, tmp_path, 100_000)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["bytes=100000-"]
    assert (tmp_path / "log.bin").read_bytes() == CONTENT


def test_changed_between_part_and_resume(site, tmp_path):
    leave_part(site, tmp_path, 100_000)
    site.content, site.etag = CONTENT[::-1], '"two"'
    get(site, tmp_path)
    assert (tmp_path / "log.bin").read_bytes() == CONTENT[::-1]


def test_rest_of_another_file_is_not_appended(site, tmp_path):
    site.liar = True
    leave_part(site, tmp_path, 100_000)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["bytes=100000-", ""]


@pytest.mark.parametrize(
    "notes",
    [{"url": "https://elsewhere/log.bin"}, {"etag": ""}, {"size": None}, {"size": 5}],
    ids=["address", "no-tag", "no-size", "too-long"],
)
def test_part_of_something_else_is_not_continued(site, tmp_path, notes):
    leave_part(site, tmp_path, 100_000, **notes)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == [""]


def test_damaged_notes_start_anew(site, tmp_path):
    leave_part(site, tmp_path, 100_000)
    (tmp_path / "log.bin.part.json").write_text("{")
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == [""]


def test_truncated_body_is_continued(site, tmp_path):
    site.cut, site.cuts = 100_000, 2
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["", "bytes=100000-", "bytes=200000-"]


def test_truncated_for_good_keeps_the_part(site, tmp_path):
    site.cut = 50_000
    with pytest.raises(
        DataError, match="connection ended after 150,000 of 300,000 bytes"
    ) as caught:
        get(site, tmp_path, sha256=SHA256)
    assert "3 tries" in str(caught.value)
    assert "150,000 bytes are kept" in str(caught.value)
    assert str(tmp_path / "log.bin") in str(caught.value)
    assert SHA256 in str(caught.value)
    assert visible(tmp_path) == ["log.bin.part", "log.bin.part.json"]


def test_without_length_the_end_is_the_end(site, tmp_path):
    site.length = False
    get(site, tmp_path, sha256=SHA256)
    assert (tmp_path / "log.bin").stat().st_size == 300_000


def test_size_that_was_not_expected(site, tmp_path):
    with pytest.raises(DataError, match="offers 300,000 bytes where 299,999 are expected"):
        get(site, tmp_path, sha256=SHA256, size=299_999)
    site.length = False
    with pytest.raises(DataError, match="it has 300,000 bytes, not 299,999"):
        get(site, tmp_path, sha256=SHA256, size=299_999)


def test_recorded_on_first_use_then_changed(site, tmp_path):
    assert get(site, tmp_path).checked == "first use"
    assert get(site, tmp_path).checked == "recorded"
    (tmp_path / "log.bin").unlink()
    assert get(site, tmp_path).checked == "recorded"
    (tmp_path / "log.bin").unlink()
    site.content, site.etag = b"other", '"two"'
    with pytest.raises(DataError, match="changed since it was first fetched") as caught:
        get(site, tmp_path)
    assert "delete" in str(caught.value)
    assert visible(tmp_path) == ["log.bin.fetched.json"]
    (tmp_path / "log.bin.fetched.json").unlink()
    assert get(site, tmp_path).checked == "first use"


def test_record_that_says_nothing(site, tmp_path):
    (tmp_path / "log.bin.fetched.json").write_text("[]")
    with pytest.raises(DataError, match="records no sha256"):
        get(site, tmp_path)


def test_put_there_by_hand(site, tmp_path):
    (tmp_path / "log.bin").write_bytes(CONTENT)
    fetched = get(site, tmp_path)
    assert (fetched.new, fetched.checked, site.asked) == (False, "first use", [])
    (tmp_path / "log.bin").write_bytes(b"wrong")
    with pytest.raises(DataError, match="is not the file that is expected"):
        get(site, tmp_path, sha256=SHA256)
    assert (tmp_path / "log.bin").read_bytes() == b"wrong"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "no such file on the server"),
        (410, "no such file on the server"),
        (403, "may need a login"),
        (401, "may need a login"),
        (400, "answers 400"),
    ],
)
def test_final_answers(site, tmp_path, status, words):
    site.statuses = [status] * 9
    with pytest.raises(DataError, match=words) as caught:
        get(site, tmp_path, sha256=SHA256)
    assert "put there by hand" in str(caught.value)
    assert site.asked == [""]
    assert visible(tmp_path) == []


def test_busy_server_is_tried_again(site, tmp_path):
    site.statuses = [500, 503]
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["", "", ""]
    (tmp_path / "more").mkdir()
    site.statuses = [500] * 9
    with pytest.raises(DataError, match=r"answers 500 .* \(3 tries\)"):
        get(site, tmp_path / "more", sha256=SHA256)


@pytest.mark.parametrize("answer", [b"206 Partial Content", b"204 No Content"])
def test_answers_that_make_no_sense(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=reply)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/log.bin"
        with pytest.raises(DataError, match="where the file should come"):
            download(url, tmp_path / "log.bin", retries=0)
        thread.join()


def test_pauses_double(site, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    site.statuses = [500, 500, 429]
    get(site, tmp_path, retries=3, pause=1.0)
    assert slept == [1.0, 2.0, 4.0]


def test_part_beyond_the_end(site, tmp_path):
    leave_part(site, tmp_path, 300_000, size=400_000)
    site.content = CONTENT[:200_000]
    get(site, tmp_path)
    assert site.asked == ["bytes=300000-", ""]
    assert (tmp_path / "log.bin").read_bytes() == CONTENT[:200_000]


def test_offline(site, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(
        DataError, match="refuses the connection; is this machine offline"
    ) as caught:
        download(f"http://127.0.0.1:{port}/log.bin", tmp_path / "log.bin", size=7)
    assert "7 bytes" in str(caught.value)

    def no_name(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", no_name)
    with pytest.raises(DataError, match=r"the name data\.example cannot be resolved"):
        download("https://data.example/log.bin", tmp_path / "log.bin")
    assert time.monotonic() - start < 1.0


def test_slow_server(site, tmp_path):
    site.stall = 5.0
    start = time.monotonic()
    with pytest.raises(DataError, match=r"nothing came for 0\.2 s \(1 tries\)"):
        get(site, tmp_path, timeout=0.2, retries=0)
    assert time.monotonic() - start < 2.0
    assert (tmp_path / "log.bin.part").read_bytes() == CONTENT[:150_000]


def test_server_that_never_answers(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DataError, match=r"did not answer within 0\.1 s \(2 tries\)"):
            download(
                f"http://127.0.0.1:{silent.getsockname()[1]}/log.bin",
                tmp_path / "log.bin",
                timeout=0.1,
                retries=1,
                pause=0.0,
            )


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_instead_of_the_file(site, tmp_path, kind):
    page = b"\n  <!DOCTYPE html><html><body>Please log in to go on, stranger.</body></html>"
    site.content, site.content_type = page, kind
    for name in ("log.zip", "log.json"):
        with pytest.raises(DataError, match="web page"):
            get(site, tmp_path, name)
    assert [name for name in visible(tmp_path) if ".part" not in name] == []


def test_short_web_page(site, tmp_path):
    site.content = b"<html>no</html>"
    with pytest.raises(DataError, match="what came is a web page"):
        get(site, tmp_path, "log.csv")
    assert visible(tmp_path) == []


def test_not_an_archive(site, tmp_path):
    with pytest.raises(DataError, match=r"does not begin like a \.gz file"):
        get(site, tmp_path, "log.csv.gz")
    assert head_complaint("a.tar.gz", b"\x1f\x8b\x08") == ""
    assert head_complaint("a.zip", b"PK\x03\x04") == ""


def test_redirects(site, tmp_path):
    with serving(Site(b"", redirect=site.url + "log.bin")) as first:
        get(first, tmp_path, sha256=SHA256)
    site.redirect = site.url + "log.bin"
    (tmp_path / "circle").mkdir()
    with pytest.raises(DataError, match="redirects in a circle"):
        get(site, tmp_path / "circle", "other.bin")
    for place in (
        "http://data.example/log.bin",
        "file:///etc/passwd",
        "ftp://data.example/log.bin",
    ):
        site.redirect = place
        with pytest.raises(DataError, match=r"not encrypted|begin with https|no address"):
            get(site, tmp_path / "circle", "other.bin")


@pytest.mark.parametrize(
    "url",
    ["ftp://a.b/c", "file:///etc/passwd", "a.b/c", "", "https://", "https://a b/c", "http://["],
)
def test_no_address(url, tmp_path):
    with pytest.raises(DataError, match="no address"):
        download(url, tmp_path / "file")


def test_plain_http_must_be_allowed():
    with pytest.raises(DataError, match="not encrypted"):
        check_address("http://data.example/log.bin", allow_http=False)
    check_address("http://data.example/log.bin", allow_http=True)
    check_address("http://localhost:80/log.bin", allow_http=False)


def test_kill_in_the_middle_leaves_a_part_only(site, tmp_path):
    site.stall = 60.0
    program = (
        "import sys; from jaxrec.data.fetch import download; from pathlib import Path\n"
        "download(sys.argv[1], Path(sys.argv[2]))"
    )
    target = tmp_path / "log.bin"
    child = subprocess.Popen([sys.executable, "-c", program, site.url + "log.bin", str(target)])
    part = tmp_path / "log.bin.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size == 150_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert visible(tmp_path) == ["log.bin.part", "log.bin.part.json"]
    site.stall = 0.0
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["", "bytes=150000-"]


def test_two_at_once_fetch_once(site, tmp_path, capfd):
    site.stall = 0.3
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(site, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.new for each in found) == [False, True]
    assert site.asked == [""]
    assert "another process fetches it; waiting" in capfd.readouterr().err


def test_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"nothing can be written in .*--to"):
        get(site, tmp_path / "file")


def test_target_that_is_a_folder(site, tmp_path):
    (tmp_path / "log.bin").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        get(site, tmp_path)


def test_full_disk(site, tmp_path, monkeypatch):
    real, written = fetch.store, []

    def full(file, block):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(block)
        real(file, block)

    monkeypatch.setattr(fetch, "store", full)
    with pytest.raises(DataError, match="No space left on device"):
        get(site, tmp_path, sha256=SHA256)
    kept = sum(map(len, written))
    assert (tmp_path / "log.bin.part").read_bytes() == CONTENT[:kept]
    monkeypatch.setattr(fetch, "store", real)
    get(site, tmp_path, sha256=SHA256)
    assert site.asked == ["", f"bytes={kept}-"]


def test_disk_too_small_is_found_first(site, tmp_path, monkeypatch):
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=299_999)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"299,999 bytes free and log\.bin needs 300,000"):
        get(site, tmp_path)
