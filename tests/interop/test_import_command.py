"""`jaxrec import hf`: the table, the folder it makes, how that is read, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import parallel
from jaxrec.checkpoint import Checkpoints
from jaxrec.cli import main
from jaxrec.interop.huggingface import import_weights
from jaxrec.interop.huggingface_config import read_config, settings_of
from jaxrec.interop.imported import imported_component, inspect_source, load_imported
from jaxrec.interop.safetensors_files import DTYPES, Entry, write_tensors
from jaxrec.interop.weight_names import sizes_of, weights_of
from jaxrec.types import TokenSpace

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def failing(capsys, *words):
    assert main(["import", "hf", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


@pytest.fixture
def imported(tmp_path, capsys):
    """A folder that the command made of Qwen3 with a tokenizer."""
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "qwen3", source)
    (source / "tokenizer.json").write_text("{}")
    assert main(["import", "hf", str(source), "--out", str(tmp_path / "imported")]) == 0
    shutil.rmtree(source)
    capsys.readouterr()
    return tmp_path / "imported"


def test_what_is_printed(capsys):
    assert main(["import", "hf", str(GOLDEN / "llama"), "--dtype", "bfloat16"]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table["family"] == "llama, LanguageModel"
    assert table["layers"] == "2 of width 12, 4 heads of 8"
    assert table["vocabulary"] == "23 rows, output own"
    params = import_weights(GOLDEN / "llama", read_config(GOLDEN / "llama"))
    assert table["parameters"] == f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}"
    source = inspect_source(GOLDEN / "llama")
    assert source.file_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert source.bytes_of("bfloat16") * 2 == source.bytes_of(None) == source.file_bytes


def test_an_import_is_read_again(imported):
    """The component, with the tokenizer of the folder wherever it went, and the parameters."""
    moved = imported.rename(imported.with_name("moved"))
    component, params = load_imported(moved)
    assert component.prompt.tokenizer.path == str(moved)
    assert imported_component(moved) == component
    assert "source" not in (moved / "imported.json").read_text()
    plain = read_config(GOLDEN / "qwen3")
    assert dataclasses.replace(component, prompt=plain.prompt) == plain
    expected = import_weights(GOLDEN / "qwen3", plain)
    assert_same(params, expected)
    # And by whoever reads checkpoints, without this wing.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected)
    with Checkpoints(moved / "checkpoints") as checkpoints:
        assert_same(checkpoints.restore_params(0, shapes), expected)
        assert checkpoints.manifest(0)["family"] == "qwen3"


def test_an_import_goes_onto_a_mesh(imported):
    component, params = load_imported(imported)
    mesh = parallel.make_mesh(parallel.MeshShape(data=4, fsdp=2))
    shardings = parallel.shardings(component.axes(TokenSpace((4,))), params, mesh)
    _, sharded = load_imported(imported, shardings)
    assert_same(sharded, params)
    for leaf, sharding in zip(jax.tree.leaves(sharded), jax.tree.leaves(shardings)):
        assert leaf.sharding == sharding


def test_types(tmp_path, capsys):
    for dtype in ("bfloat16", "file"):
        out = tmp_path / dtype
        assert main(["import", "hf", str(GOLDEN / "t5"), "--out", str(out), "--dtype", dtype]) == 0
        expected = jnp.float32 if dtype == "file" else jnp.bfloat16
        t5, params = load_imported(out)
        assert t5 == read_config(GOLDEN / "t5")
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(expected)}


def test_what_is_refused(tmp_path, capsys):
    assert "`jaxrec import hf` needs a folder" in failing(capsys)
    assert "there is no folder nowhere" in failing(capsys, "nowhere")
    assert f"--out {tmp_path} exists" in failing(capsys, GOLDEN / "t5", "--out", tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "qwen2", folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-5])
    message = failing(capsys, folder, "--out", tmp_path / "out")
    assert "model.safetensors is truncated" in message
    settings = json.loads((folder / "config.json").read_text()) | {"hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert "hidden_act=gelu is not supported" in failing(capsys, folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_imports_are_refused(imported, tmp_path):
    with pytest.raises(ValueError, match=r"is no import: it has no imported\.json"):
        load_imported(tmp_path)
    about = json.loads((imported / "imported.json").read_text())
    for change in ({"component": 3}, {"dtypes": {}}, {"vocabulary": "x"}, {"family": "bert"}):
        (imported / "imported.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=r"imported\.json is damaged"):
            load_imported(imported)
    (imported / "imported.json").write_text(json.dumps(about | {"vocabulary": 24}))
    with pytest.raises(ValueError, match="tokens/table"):
        load_imported(imported)


PEAK = """
    import sys
    from pathlib import Path
    import jax
    from jaxrec.cli import main
    from jaxrec.interop.huggingface import import_weights
    from jaxrec.interop.imported import inspect_source

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    folder, dtype, out = sys.argv[1:]
    jax.block_until_ready(jax.numpy.zeros(3))
    before = peak()
    source = inspect_source(folder)
    if out:
        assert main(["import", "hf", folder, "--dtype", dtype, "--out", out]) == 0
    else:
        params = jax.block_until_ready(import_weights(folder, source.component, dtype=dtype))
    print((peak() - before) / source.bytes_of(dtype))
"""


@pytest.fixture(scope="module")
def half_a_billion(tmp_path_factory):
    """Random weights in the shape of Qwen2.5-0.5B, bfloat16, in three files: 988 MB."""
    folder = tmp_path_factory.mktemp("models") / "qwen2.5-0.5b"
    folder.mkdir()
    settings = settings_of(read_config(GOLDEN / "qwen2"), 151936) | {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 4864,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    model, random = read_config(folder), np.random.default_rng(0)
    sizes = sizes_of(model, 151936)
    entries = [
        Entry(key, weight.key_shape(sizes), DTYPES["BF16"])
        for weight in weights_of("qwen2", model)
        for key in weight.keys(sizes)
    ]
    # Bits of positive numbers below 1.
    bits = (random.integers(0, 0x3F80, entry.shape, np.uint16) for entry in entries)
    write_tensors(
        folder, entries, (each.view(DTYPES["BF16"]) for each in bits), file_bytes=4 * 10**8
    )
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("out", ["", "imported"])
def test_memory_is_that_of_the_result(half_a_billion, dtype, out, tmp_path, monkeypatch):
    """Half a billion parameters in a fresh process, with and without writing the import."""
    for name in ("XLA_FLAGS", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    out = str(tmp_path / out) if out else ""
    words = [str(half_a_billion), dtype, out]
    command = [sys.executable, "-c", textwrap.dedent(PEAK), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    share = float(done.stdout.splitlines()[-1])
    print(f"peak memory {share:.3f} of the weights ({dtype}{', written' if out else ''})")
    assert 1.0 < share < 1.3
    shutil.rmtree(out, ignore_errors=True)
