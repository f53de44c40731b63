"""Safetensors: the library reads what is written here, and whatever is damaged is refused."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from jaxrec.interop import safetensors_files
from jaxrec.interop.safetensors_files import (
    INDEX,
    SINGLE,
    Entry,
    open_tensors,
    read_tensor,
    write_tensors,
)

BF16 = np.dtype(jnp.bfloat16)


def arrays():
    """One of every type, odd sizes, one that is empty."""
    random = np.random.default_rng(0)
    return {
        "matrix": random.normal(size=(7, 5)).astype(np.float32),
        "half": random.normal(size=(3,)).astype(np.float16),
        "brain": random.normal(size=(5, 2, 3)).astype(BF16),
        "nothing": np.zeros((0, 4), np.float32),
    }


def write(folder, tensors, **options):
    folder.mkdir(exist_ok=True)
    entries = [Entry(key, array.shape, array.dtype) for key, array in tensors.items()]
    write_tensors(folder, entries, iter(tensors.values()), **options)


def assert_equal(one, other):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.tobytes() == other.tobytes()


def header_of(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path, header, numbers, text=None):
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def refuses(folder, *parts):
    with pytest.raises(ValueError) as caught:
        open_tensors(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """A folder with one good file."""
    write(tmp_path, arrays())
    return tmp_path


def test_the_library_reads_what_is_written(folder):
    with safe_open(folder / SINGLE, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays())
        for key, array in arrays().items():
            assert_equal(file.get_tensor(key), array)
    assert int.from_bytes((folder / SINGLE).read_bytes()[:8], "little") % 8 == 0


def test_what_the_library_writes_is_read(tmp_path):
    safetensors.numpy.save_file(arrays(), tmp_path / SINGLE)
    tensors = open_tensors(tmp_path)
    assert tensors.keys() == arrays().keys()
    for key, array in arrays().items():
        assert (tensors[key].shape, tensors[key].dtype) == (array.shape, array.dtype)
        assert_equal(read_tensor(tensors[key]), array)


@pytest.mark.parametrize("block", [1, 50, 1 << 24])
def test_slices_are_those_of_numpy(folder, monkeypatch, block):
    """All slices of all axes, also where rows are read in blocks of one, or of a few."""
    monkeypatch.setattr(safetensors_files, "_BLOCK_BYTES", block)
    tensors = open_tensors(folder)
    for key in ("matrix", "half", "brain"):
        array = arrays()[key]
        every = [[slice(a, b) for a, b in itertools.combinations(range(size + 1), 2)]
                 for size in array.shape]  # fmt: skip
        for index in itertools.islice(itertools.product(*every), 0, None, 7):
            assert_equal(read_tensor(tensors[key], index), np.ascontiguousarray(array[index]))


def test_large_files_are_split_and_indexed(tmp_path):
    """A file takes what fits; a tensor that is larger than that has one of its own."""
    write(tmp_path, arrays(), file_bytes=70)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays().values())
    names = [f"model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    assert index["weight_map"] == dict(zip(arrays(), [names[0], *[names[1]] * 3]))
    assert not (tmp_path / SINGLE).exists()
    tensors = open_tensors(tmp_path)
    for key, array in arrays().items():
        assert tensors[key].path.name == index["weight_map"][key]
        assert_equal(read_tensor(tensors[key]), array)
    write(tmp_path / "whole", arrays(), file_bytes=sum(each.nbytes for each in arrays().values()))
    assert [path.name for path in (tmp_path / "whole").iterdir()] == [SINGLE]
    with pytest.raises(ValueError, match="file_bytes=0"):
        write(tmp_path, arrays(), file_bytes=0)


def test_a_file_that_was_cut_anywhere_is_refused(folder):
    content = (folder / SINGLE).read_bytes()
    for length in range(len(content)):
        (folder / SINGLE).write_bytes(content[:length])
        refuses(folder, SINGLE, "truncated")
    (folder / SINGLE).write_bytes(content + b"x")
    refuses(folder, "1 bytes that belong to no tensor")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(folder):
    stored = open_tensors(folder)["brain"]
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-30])
    with pytest.raises(ValueError, match="has become shorter"):
        read_tensor(stored)


def test_types_that_are_no_weights_are_refused_by_key(tmp_path):
    for dtype in (np.float64, np.int8, np.int64):
        safetensors.numpy.save_file({"a.weight": np.zeros(2, dtype)}, tmp_path / SINGLE)
        refuses(tmp_path, "a.weight", SINGLE, "F32, F16, BF16")


CHANGES = {
    "a hole": ({"data_offsets": [12, 18]}, "other begins at byte 6"),
    "an overlap": ({"data_offsets": [2, 8]}, "begins at byte 2"),
    "beyond the end": ({"data_offsets": [0, 600], "shape": [300]}, "truncated: half ends at byte"),
    "negative": ({"data_offsets": [-6, 0]}, "offsets [-6, 0]"),
    "bytes of another shape": ({"shape": [4]}, "half, F16[4], takes 6 bytes"),
    "a negative shape": ({"shape": [-3]}, "shape [-3]"),
    "a shape of words": ({"shape": "abc"}, "damaged"),
    "no shape": ({"shape": None}, "damaged"),
    "a type that is none": ({"dtype": []}, "damaged"),
    "offsets of three": ({"data_offsets": [0, 6, 6]}, "damaged"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_headers_that_lie_are_refused(tmp_path, change):
    path, (fields, message) = tmp_path / SINGLE, CHANGES[change]
    write(tmp_path, {"half": arrays()["half"], "other": np.ones(3, np.float32)})
    header, numbers = header_of(path)
    header["half"] |= fields
    put(path, header, numbers)
    refuses(tmp_path, SINGLE, message)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000])
def test_headers_that_are_none_are_refused(tmp_path, text):
    put(tmp_path / SINGLE, {}, b"", text)
    refuses(tmp_path, f"the header of {tmp_path / SINGLE} is damaged")


def test_an_index_and_its_files_must_agree(tmp_path):
    def fresh():
        write(tmp_path, arrays(), file_bytes=70)
        return json.loads((tmp_path / INDEX).read_text())

    def with_places(places):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))

    places = fresh()["weight_map"]
    with_places(places | {"matrix": "model-9.safetensors"})
    refuses(tmp_path, "'model-9.safetensors', which is not in that folder")
    with_places(places | {"matrix": f"../{tmp_path.name}/{places['matrix']}"})
    refuses(tmp_path, "which is not in that folder")
    with_places(places | {"matrix": places["brain"]})
    refuses(tmp_path, "matrix is not in model-00002-of-00002.safetensors")
    with_places(places | {"absent": places["brain"]})
    refuses(tmp_path, "absent is not in")
    with_places({key: name for key, name in places.items() if key != "half"})
    refuses(tmp_path, "half is in model-00002-of-00002.safetensors", "nothing of it")
    with_places(["matrix"])
    refuses(tmp_path, "has no weight_map")
    (tmp_path / INDEX).write_text("[")
    refuses(tmp_path, INDEX, "not readable as JSON")
    fresh()
    (tmp_path / places["matrix"]).unlink()
    refuses(tmp_path, "model-00001-of-00002.safetensors", "not in that folder")


def test_a_folder_without_safetensors_says_what_it_has(tmp_path):
    refuses(tmp_path, "neither model.safetensors nor")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refuses(tmp_path, "pytorch_model.bin is a pickle")
