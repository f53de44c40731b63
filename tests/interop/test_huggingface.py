"""Weights of transformers' models in and out: what they say, their slopes, and what is refused."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec import parallel
from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.t5 import T5
from jaxrec.interop import huggingface
from jaxrec.interop.huggingface import export_weights, import_weights
from jaxrec.interop.huggingface_config import read_config, read_settings
from jaxrec.types import Events, Tables, TextBatch, TokenSpace

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"
TEXT_FAMILIES = ("qwen2", "qwen3", "llama")
FAMILIES = (*TEXT_FAMILIES, "t5")
SPACE = TokenSpace((7, 5, 3))


def golden(family):
    """Arrays of what transformers said, the component and the parameters."""
    folder = GOLDEN / family
    with np.load(folder / "expected.npz") as file:
        expected = {name: file[name] for name in file.files}
    component = read_config(folder)
    return expected, component, import_weights(folder, component)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def assert_same(one, other, tolerance=0.0):
    assert paths(one).keys() == paths(other).keys()
    for path, leaf in paths(one).items():
        there = np.asarray(paths(other)[path])
        assert (leaf.dtype, leaf.shape) == (there.dtype, there.shape), path
        if tolerance:
            np.testing.assert_allclose(leaf, there, rtol=tolerance, atol=tolerance, err_msg=path)
        else:
            assert np.array_equal(np.asarray(leaf), there), path


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_language_model_says_what_transformers_says(family):
    """Logits and the slopes of every weight, to 1e-5 of numbers around 1."""
    expected, model, params = golden(family)
    tokens = jnp.asarray(expected["tokens"], jnp.int32)
    ones = jnp.ones_like(tokens)
    places = jnp.cumsum(ones, axis=1) - 1
    batch = TextBatch(tokens, -ones, ones, places, jnp.ones(tokens.shape))
    tables = Tables(jnp.zeros((1, 3), jnp.int32))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        found = model.forward(params, tables, batch, SPACE)
        logits = found.states @ found.kernel
        picked = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(picked, tokens[:, 1:, None], axis=-1)), logits

    (mean, logits), slopes = jax.jit(loss)(params)
    assert np.abs(expected["logits"]).max() > 1
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(mean, expected["loss"], rtol=1e-5)
    theirs = import_weights(GOLDEN / family / "gradients", model)
    assert all(np.abs(np.asarray(slope)).max() > 1e-3 for slope in jax.tree.leaves(theirs))
    assert_same(slopes, theirs, tolerance=1e-5)


def test_t5_says_what_transformers_says():
    """The same, of codes of a target after a full, an almost empty history."""
    expected, t5, params = golden("t5")
    assert (t5.layers, t5.decoder_layers, t5.gated) == (2, 3, False)
    tables = Tables(jnp.asarray(expected["codes"], jnp.int32))
    items = np.concatenate([expected["items"], expected["targets"][:, None]], axis=1)
    segment = np.concatenate([expected["exists"], np.ones((2, 1))], axis=1)
    item, segment = jnp.asarray(items, jnp.int32), jnp.asarray(segment, jnp.int32)
    nothing = jnp.zeros_like(item)
    batch = Events(item, segment, nothing, nothing, nothing, jnp.ones(item.shape))
    target = tables.codes[item[:, -1]]
    whole = dataclasses.replace(t5, softmax="vocabulary")

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        likely = whole.forward(params, tables, batch, SPACE)[:, 0]
        return -jnp.mean(jnp.take_along_axis(likely, target[..., None], axis=-1)), likely

    (mean, likely), slopes = jax.jit(loss)(params)
    total = np.logaddexp.reduce(expected["logits"], axis=-1, keepdims=True)
    for level, (first, size) in enumerate(zip(SPACE.offsets, SPACE.sizes)):
        theirs = (expected["logits"] - total)[:, level, first : first + size]
        np.testing.assert_allclose(likely[:, level, :size], theirs, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(mean, expected["loss"], rtol=1e-5)
    theirs = import_weights(GOLDEN / "t5" / "gradients", t5)
    assert_same(slopes, theirs, tolerance=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_import_export_import(family, tmp_path):
    """Identical, and the files hold what the first ones held, byte for byte."""
    _, component, params = golden(family)
    out = tmp_path / "out"
    export_weights(params, component, out)
    written = safetensors.numpy.load_file(out / "model.safetensors")
    original = safetensors.numpy.load_file(GOLDEN / family / "model.safetensors")
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[key], original[key]) for key in original)
    assert read_config(out) == component
    assert_same(import_weights(out, component), params)
    # The configuration says what the first one said, in the spelling of before.
    first, second = (
        json.loads((each / "config.json").read_text()) for each in (GOLDEN / family, out)
    )
    told = second.keys() & first.keys()
    assert {"model_type", "vocab_size"} <= told
    assert {key: second[key] for key in told} == {key: first[key] for key in told}


def test_many_files_in_half_the_bits(tmp_path):
    """bfloat16 rounds once, and then goes in and out unchanged, also through many files."""
    _, model, params = golden("qwen2")
    for name in ("one", "two"):
        half = params if name == "one" else import_weights(tmp_path / "one", model)
        export_weights(half, model, tmp_path / name, dtype="bfloat16", file_bytes=2000)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    assert len(names) > 2
    for name in names:
        one, two = ((tmp_path / each / name).read_bytes() for each in ("one", "two"))
        assert one == two
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert_same(import_weights(tmp_path / "one", model), rounded)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    assert_same(import_weights(tmp_path / "one", model, dtype="float32"), wide)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_type_is_the_widest_of_a_stack(tmp_path):
    """Layers of unequal types become one array without loss; other parameters keep theirs."""
    _, model, params = golden("qwen2")
    folder = copy_of("qwen2", tmp_path)
    key = "model.layers.1.input_layernorm.weight"
    change(folder, lambda tensors: tensors | {key: tensors[key].astype(np.float16)})
    whole = paths(import_weights(folder, model))
    assert whole["layers/blocks/attention_norm/scale"].dtype == jnp.float32
    first = paths(params)["layers/blocks/attention_norm/scale"]
    rounded = np.asarray(first).astype(np.float16).astype(np.float32)
    found = np.asarray(whole["layers/blocks/attention_norm/scale"])
    assert np.array_equal(found, np.stack([first[0], rounded[1]]))
    half = {"model.norm.weight": np.ones(12, np.float16)}
    change(folder, lambda tensors: tensors | half)
    assert import_weights(folder, model)["layers"]["norm"]["scale"].dtype == jnp.float16


@pytest.mark.parametrize("family", FAMILIES)
def test_straight_to_its_shardings(family, monkeypatch):
    """Every device gets its shard; no byte of the files is read twice for copies of a shard."""
    _, component, params = golden(family)
    mesh = parallel.make_mesh(parallel.MeshShape(data=2, fsdp=2, tensor=2))
    shardings = parallel.shardings(component.axes(SPACE), params, mesh)
    read = []

    def counted(stored, index):
        part = huggingface.safetensors_files.read_tensor(stored, index)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr(huggingface, "read_tensor", counted)
    sharded = import_weights(GOLDEN / family, component, shardings)
    assert_same(sharded, params)
    for path, leaf in paths(sharded).items():
        assert leaf.sharding == paths(shardings)[path], path
    side = "encoder" if family == "t5" else "layers"
    kernel = paths(sharded)[f"{side}/blocks/feedforward/up"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_layers_on_different_devices():
    """A stack may be cut between its layers, which the rules of the house never do."""
    _, model, params = golden("llama")
    mesh = parallel.make_mesh(parallel.MeshShape(data=4, fsdp=2))
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    shardings = jax.tree.map(lambda leaf: parallel.replicated(mesh), params)
    shardings["layers"]["blocks"] = jax.tree.map(lambda leaf: cut, params["layers"]["blocks"])
    sharded = import_weights(GOLDEN / "llama", model, shardings)
    assert_same(sharded, params)
    assert sharded["layers"]["blocks"]["attention"]["query"].sharding == cut


def test_a_sharded_model_is_exported_whole(tmp_path):
    _, component, params = golden("llama")
    mesh = parallel.make_mesh(parallel.MeshShape(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, parallel.shardings(component.axes(SPACE), params, mesh))
    for name, tree in (("one", params), ("two", sharded)):
        export_weights(tree, component, tmp_path / name)
    one, two = ((tmp_path / each / "model.safetensors").read_bytes() for each in ("one", "two"))
    assert one == two


def test_rows_of_semantic_ids_go_with_the_others(tmp_path):
    """A token table of a trained model has more rows than the text; all of them are written."""
    model = LanguageModel(layers=1, width=8, heads=2, kv_heads=1, head_size=4, feedforward=8,
                          text_vocabulary=5, query_key_norm=True, tied=False)  # fmt: skip
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), SPACE))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), shapes
    )
    export_weights(params, model, tmp_path / "out", settings={"max_position_embeddings": 99})
    assert read_settings(tmp_path / "out")["max_position_embeddings"] == 99
    again = read_config(tmp_path / "out")
    assert again == dataclasses.replace(model, text_vocabulary=model.tokens(SPACE))
    assert_same(import_weights(tmp_path / "out", again), params)


def copy_of(family, tmp_path):
    """A golden folder that may be changed."""
    folder = tmp_path / family
    shutil.copytree(GOLDEN / family, folder, dirs_exist_ok=True)
    return folder


def change(folder, edit):
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(edit(safetensors.numpy.load_file(path)), path)


def configure(folder, **settings):
    path = folder / "config.json"
    told = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: each for key, each in told.items() if each is not ABSENT}))


ABSENT = object()


def refuses(folder, component, *parts):
    with pytest.raises(ValueError) as caught:
        import_weights(folder, component)
    for part in parts:
        assert part in str(caught.value)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FAULTS = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != Q_PROJ}, f"missing: {Q_PROJ}"),
    "renamed": (
        lambda t: {k.replace(Q_PROJ, "model.q"): v for k, v in t.items()},
        f"missing: {Q_PROJ}; unexpected: model.q.",
    ),
    "all renamed": (
        lambda t: {k.removeprefix("model."): v for k, v in t.items()},
        "missing: model.embed_tokens.weight, model.layers.0.input_layernorm.weight",
    ),
    "unexpected": (
        lambda t: t | {"score.weight": np.ones(2)[:0].astype(np.float32)},
        "score.weight",
    ),
    "shape": (
        lambda t: t | {Q_PROJ: t[Q_PROJ][:-1]},
        f"shapes: {Q_PROJ} is [11, 12] there and [12",
    ),
    "type": (lambda t: t | {Q_PROJ: t[Q_PROJ].astype(np.int8)}, f"{Q_PROJ} in"),
    "rows beyond": (
        lambda t: t | {"model.embed_tokens.weight": np.ones((24, 12), np.float32)},
        "model.embed_tokens.weight is [24, 12] there and [23, 12] by config.json",
    ),
    "untied": (
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1},
        "lm_head.weight in",
    ),
    "a copy of another shape": (
        lambda t: t | {"lm_head.weight": np.ones(3, np.float32)},
        "differs from model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_those_of_the_configuration(fault, tmp_path):
    folder, (edit, message) = copy_of("qwen2", tmp_path), FAULTS[fault]
    change(folder, edit)
    refuses(folder, read_config(folder), message, str(folder))


def test_many_missing_keys_are_counted(tmp_path):
    folder = copy_of("qwen2", tmp_path)
    change(folder, lambda tensors: {Q_PROJ: tensors[Q_PROJ]})
    refuses(folder, read_config(folder), "(and 21 more)")


def test_harmless_keys_are_left_alone(tmp_path):
    """Copies of tied weights and buffers of old files."""
    for family, harmless in {
        "qwen2": {
            "lm_head.weight": "model.embed_tokens.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq": "model.norm.weight",
        },
        "t5": {
            "lm_head.weight": "shared.weight",
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            ),
        },
    }.items():
        _, component, params = golden(family)
        folder = copy_of(family, tmp_path)
        change(folder, lambda t, more=harmless: t | {key: t[of] for key, of in more.items()})
        assert_same(import_weights(folder, component), params)


def test_another_component_is_refused():
    """What the configuration decides must agree; dropout and the like may differ."""
    _, model, params = golden("qwen2")
    other = dataclasses.replace(model, dropout=0.1, dtype="bfloat16", remat=True)
    assert_same(import_weights(GOLDEN / "qwen2", other), params)
    for field, value in {"rope_base": 1e4, "norm_epsilon": 1e-5, "query_key_norm": True}.items():
        other = dataclasses.replace(model, **{field: value})
        refuses(GOLDEN / "qwen2", other, f"{field}=", repr(value))
    refuses(GOLDEN / "qwen2", T5(layers=2, width=12), "describes a network with")


def test_impossible_requests(tmp_path):
    _, model, params = golden("qwen2")
    with pytest.raises(ValueError, match="dtype='float8' is unknown; choose one of float32"):
        import_weights(GOLDEN / "qwen2", model, dtype="float8")
    with pytest.raises(ValueError, match="tree of the parameters, layers/blocks"):
        import_weights(GOLDEN / "qwen2", model, {"tokens": {"table": None}})
    with pytest.raises(ValueError, match="exists; name a folder"):
        export_weights(params, model, tmp_path)
    with pytest.raises(ValueError, match="vocab_size follows from the component"):
        export_weights(params, model, tmp_path / "out", settings={"vocab_size": 3})
    deeper = dataclasses.replace(model, layers=3)
    with pytest.raises(ValueError, match=r"attention_norm/scale is \[2, 12\], expected \[3, 12\]"):
        export_weights(params, deeper, tmp_path / "out")
    with pytest.raises(ValueError, match="output/kernel is absent, expected"):
        export_weights(params, dataclasses.replace(model, tied=False), tmp_path / "out")
    with pytest.raises(ValueError, match="no published family has attention_bias and"):
        export_weights(params, dataclasses.replace(model, query_key_norm=True), tmp_path / "out")
    with pytest.raises(ValueError, match="separator=True, user_buckets=0 has no counterpart"):
        export_weights(params, T5(separator=True), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_tokenizer_go_along(tmp_path):
    _, model, params = golden("qwen2")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    export_weights(params, model, tmp_path / "out", tokenizer_files=[tokenizer])
    prompt = read_config(tmp_path / "out").prompt
    assert prompt.tokenizer.path == str(tmp_path / "out")
    assert_same(import_weights(tmp_path / "out", read_config(tmp_path / "out")), params)
