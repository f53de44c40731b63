"""Damage: what a download, a spreadsheet, an editor or a stranger may do to a file.

Every function takes a `random.Random`, so that hypothesis can drive (and shrink) the same damage
that the long runs of benchmarks/fuzz.py draw at random.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

Files = dict[str, bytes]
"""Contents by name, relative to a folder."""

DEEP = 10_000
_MOST = 200_000
"""Bytes that a file may grow to by repetition: damage is searched for, not bulk."""
HOSTILE = (
    *("", " ", "0", "-1", "1", "1.5", "-0.0", "1e308", "1e999", "nan", "NaN", "inf", "-Infinity"),
    *("null", "None", "true", "[]", "{}", "()", '""', "''", "N/A", "?"),
    *("9" * 18, "9" * 19, "9" * 40, "-" + "9" * 25, "0x10", "1_000", "١٢٣", "4102444801"),
    *("1970-01-01T00:00:00Z", "9999-12-31", "0000-00-00", "2019-02-30", "13/13/2019 25:61:61 PM"),
    *("../../x", "/etc/passwd", "..\\..\\x", "a/b", "C:\\x", "x\0y", "~root", "%00", "${HOME}"),
    *(
        "\0",
        "\x18",
        "\x1f",
        "\x7f",
        "\u2028",
        "\ufeff",
        "\ufffd",
        "\u202e",
        "e\u0301",
        "𝔘",
        "\\u0000",
    ),
    *('"', "'", '"""', '"a', 'a"b', "\\", "\\ud800", "\ud800", "a\nb", "a\tb", "a,b", "a|b", "a:b"),
    *("=1+1", "<script>", "%s", "{0}", "_", "-", "N1-2", "N1-", "-1-1", "1_2", "1.0_x", "x" * 5000),
)
"""Texts that readers stumble over: numbers at the edge, times, names of paths, quotes, control
characters, half a surrogate pair, one very long word."""
_VALUES = (
    *(None, True, False, 0, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan")),
    *(float("inf"), "", [], {}, [[]], [None], {"": None}, [[1, [2]]], {"item": "x"}),
)
_WORD = re.compile(r"""[^\s,|:;_\[\]{}()"'<>-]+""")
_TEXT = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".inter", ".item", ".ndjson")


def mutate(files: Files, dice: random.Random) -> Files:
    """One to three kinds of damage to a copy of the files."""
    found = dict(files)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if not found:
            break
        name = dice.choice(sorted(found))
        if dice.random() < 0.04:
            _change_files(found, name, dice)
        else:
            found[name] = damage(name, found[name], dice)
    return found


def damage(name: str, content: bytes, dice: random.Random) -> bytes:
    """Damage to one file, by its kind or blindly."""
    kind = name.lower()
    if kind.endswith(".gz") and dice.random() < 0.8 and not kind.endswith(".tar.gz"):
        with unparsable():
            return gzip.compress(damage(kind[:-3], gzip.decompress(content), dice), 1, mtime=0)
    if dice.random() < 0.75:
        for suffixes, change in _BY_KIND:
            if kind.endswith(suffixes):
                with unparsable():
                    return change(content, dice)
    return _bytes(content, dice)


def random_files(files: Files, dice: random.Random) -> Files:
    """The same names with contents that are noise: bytes, or words and punctuation."""
    found = {}
    for name in files:
        size = dice.choice((0, 1, 3, 40, 400))
        if dice.random() < 0.5:
            found[name] = bytes(dice.getrandbits(8) for _ in range(size))
        else:
            pieces = (*HOSTILE, ",", "\n", "\t", "{", "}", "[", "]", '"', ":", "user", "item")
            text = "".join(dice.choice(pieces)[:40] for _ in range(size // 3))
            found[name] = _encode(text)
    return found


@contextlib.contextmanager
def unparsable() -> Generator[None]:
    """Passes over damage to files that earlier damage made unreadable; polars even panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        pass


def _change_files(files: Files, name: str, dice: random.Random) -> None:
    other = dice.choice(sorted(files))
    match dice.randrange(4):
        case 0:
            del files[name]
        case 1:
            files[name] = b""
        case 2:
            files[name], files[other] = files[other], files[name]
        case _:
            files[name] = files[name] + files[other]


def _bytes(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    at = dice.randrange(len(data) + 1)
    size = min(dice.choice((1, 1, 2, 8, 64, 512)), len(data))
    match dice.randrange(9):
        case 0:
            del data[at:]
        case 1:
            del data[:at]
        case 2:
            for _ in range(dice.choice((1, 1, 2, 8))):
                if data:
                    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        case 3:
            data[at:at] = bytes(dice.getrandbits(8) for _ in range(size or 1))
        case 4:
            del data[at : at + size]
        case 5:
            data[at:at] = data[at : at + size]
        case 6:
            data[at : at + size] = bytes(size) if dice.random() < 0.5 else b"\xff" * size
        case 7:
            data[:0] = dice.choice(
                (b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"\0")
            )
        case _:
            # Another encoding of the whole text, or of one letter of it.
            text = content.decode("latin-1")
            return dice.choice((text.encode("utf-16"), content + "\nü".encode("latin-1")))
    return bytes(data)


def _lines(content: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.6:
        return _word(content, dice)
    lines = content.split(b"\n")
    at, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    match dice.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at:at] = [lines[at]] * min(
                dice.choice((2, 100, 2000)), _MOST // len(content or b"1")
            )
        case 4:
            return dice.choice((b"\r\n", b"\r", b"\n\n")).join(lines)
        case 5:
            lines[at] = _encode(dice.choice(HOSTILE))
        case 6:
            # Lines stay in their places, one column moves.
            old, new = dice.sample((b",", b"\t", b" ", b"|", b";", b"_"), 2)
            return content.replace(old, new)
        case _:
            lines[at] = lines[at] + dice.choice((b",", b"\t", b" ", b'"')) + lines[other]
    return b"\n".join(lines)


def _word(content: bytes, dice: random.Random) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    words = list(_WORD.finditer(text))
    found = dice.choice(words)
    new = dice.choice(words).group() if dice.random() < 0.2 else dice.choice(HOSTILE)
    if dice.random() < 0.1 and len(text) < _MOST // 100:
        return _encode(text.replace(found.group(), new))
    return _encode(text[: found.start()] + new + text[found.end() :])


def _json(content: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.3:
        return _lines(content, dice)
    if dice.random() < 0.05:
        opened, closed = dice.choice((("[", "]"), ('{"a":', "}"), ("(", ")"), ("-", "")))
        deep = opened * DEEP + closed * DEEP
        found = dice.choice(list(_WORD.finditer(content.decode())))
        return (content[: found.start()].decode() + deep + content[found.end() :].decode()).encode()
    text = content.decode()
    lines = [text] if _is_json(text) else text.split("\n")
    at = dice.randrange(len(lines))
    value = json.loads(lines[at])
    value = _change_node(value, dice)
    lines[at] = json.dumps(value, ensure_ascii=dice.random() < 0.5)
    return _encode("\n".join(lines))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _change_node(value: Any, dice: random.Random) -> Any:
    """Goes down a random way and changes what is there."""
    children = (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if value and isinstance(value, list)
        else []
    )
    if children and dice.random() < 0.8:
        key = dice.choice(children)
        if isinstance(value, dict) and dice.random() < 0.15:
            value[dice.choice((*HOSTILE, *map(str, value)))] = value.pop(key)
        elif dice.random() < 0.1:
            del value[key]
        else:
            value[key] = _change_node(value[key], dice)
        return value
    return dice.choice((*_VALUES, *HOSTILE, [value], {"a": value}, [value, value], str(value)))


def _parquet(content: bytes, dice: random.Random) -> bytes:
    import polars as pl

    frame = pl.read_parquet(io.BytesIO(content))
    name = dice.choice(frame.columns)
    match dice.randrange(8):
        case 0:
            frame = frame.drop(name)
        case 1:
            frame = frame.rename({name: dice.choice(HOSTILE[20:40]) or "x"})
        case 2:
            kinds = (
                pl.String,
                pl.Int64,
                pl.Float64,
                pl.Int8,
                pl.Boolean,
                pl.Date,
                pl.Binary,
                pl.Null,
            )
            frame = frame.with_columns(pl.col(name).cast(dice.choice(kinds), strict=False))
        case 3:
            frame = frame.with_columns(pl.when(pl.int_range(pl.len()) > 0).then(name).alias(name))
        case 4:
            frame = frame.with_columns(pl.lit(_number(dice)).alias(name))
        case 5:
            frame = frame.with_columns(pl.concat_list(name).alias(name))
        case 6:
            frame = frame.clear() if dice.random() < 0.3 else pl.concat([frame, frame])
        case _:
            text = _encode(dice.choice(HOSTILE)).decode("utf-8", "replace")
            frame = frame.with_columns(pl.lit(text).alias(name))
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _number(dice: random.Random) -> float | int | None:
    return dice.choice((None, -1, 0, 2**62, -(2**62), float("nan"), float("inf"), 1e300, 0.5))


def _npy(content: bytes, dice: random.Random) -> bytes:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return _array_bytes(_change_array(array, dice), dice)


def _change_array(array: np.ndarray, dice: random.Random) -> np.ndarray:
    array = array.copy()
    match dice.randrange(6):
        case 0:
            return array[: dice.randrange(len(array) + 1)] if array.ndim else array
        case 1:
            return (
                array.reshape(-1, 1) if dice.random() < 0.5 else array.reshape(-1)[0:1].reshape(())
            )
        case 2:
            return array.astype(
                dice.choice(("<i8", "<i4", "<f4", "<f8", "S5", "U3", "?", "c8", "V4"))
            )
        case 3:
            return np.concatenate([array, array])
        case 4:
            flat = array.reshape(-1)
            with np.errstate(all="ignore"):
                values = (-1, 2**31 - 1, 10**6) if array.dtype.kind in "iu" else (np.nan, np.inf)
                flat[dice.randrange(len(flat))] = dice.choice(values)
            return array
        case _:
            return array.astype(array.dtype.newbyteorder(">"))


def _array_bytes(array: np.ndarray, dice: random.Random) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    if dice.random() < 0.15:
        # A header that promises more than there is.
        shape = re.search(rb"'shape': \(\d*", content)
        if shape:
            content = content.replace(shape.group(), b"'shape': (99999999999", 1)
    return content


def _npz(content: bytes, dice: random.Random) -> bytes:
    arrays = dict(np.load(io.BytesIO(content), allow_pickle=False))
    name = dice.choice(sorted(arrays))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, array in arrays.items():
            if each != name:
                archive.writestr(f"{each}.npy", _saved(array))
            elif dice.random() < 0.9:
                archive.writestr(f"{each}.npy", _array_bytes(_change_array(array, dice), dice))
    return buffer.getvalue()


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _zip(content: bytes, dice: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    at = dice.randrange(len(members))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (info, data) in enumerate(members):
            if number == at:
                if dice.random() < 0.3:
                    info.external_attr = dice.getrandbits(32)
                elif dice.random() < 0.2:
                    data = bytes(200_000)
                else:
                    info = zipfile.ZipInfo(
                        dice.choice((*HOSTILE[43:60], members[0][0].filename, ".unpacked.json"))
                        or "x"
                    )
            info.compress_type = dice.choice((0, 8, 8, 12, 14))
            archive.writestr(info, data)
    return buffer.getvalue()


def _tar(content: bytes, dice: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(info, (archive.extractfile(info) or io.BytesIO()).read()) for info in archive]
    at = dice.randrange(len(members))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for number, (info, data) in enumerate(members):
            if number == at:
                if dice.random() < 0.4:
                    info.type = dice.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"S"))
                    info.linkname = dice.choice(("../../x", "/etc/passwd", "log.csv"))
                else:
                    info.name = dice.choice((*HOSTILE[43:60], ".unpacked.json")) or "x"
                    info.pax_headers = {}
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _encode(text: str) -> bytes:
    """UTF-8, lone surrogates as the bytes that cannot be decoded."""
    return text.encode("utf-8", "surrogatepass")


_BY_KIND: tuple[tuple[tuple[str, ...], Callable[[bytes, random.Random], bytes]], ...] = (
    ((".tar.gz", ".tgz"), _tar),
    ((".json", ".jsonl"), _json),
    (_TEXT, _lines),
    ((".parquet",), _parquet),
    ((".npy",), _npy),
    ((".npz",), _npz),
    ((".zip",), _zip),
)
