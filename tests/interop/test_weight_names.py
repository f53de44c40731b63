"""The table of names covers every parameter, and its layouts are those that torch computes with."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.t5 import T5
from jaxrec.interop.weight_names import COPIES, HARMLESS, TABLES, Weight, sizes_of, weights_of
from jaxrec.types import TokenSpace

SPACE = TokenSpace((7, 5, 3))
LANGUAGE_MODEL = LanguageModel(
    layers=3, width=12, heads=4, kv_heads=2, head_size=6, feedforward=20, text_vocabulary=11
)
ENCODER_DECODER = T5(layers=2, decoder_layers=3, width=12, heads=2, head_size=4, feedforward=20)
COMPONENTS = {
    "qwen2": dataclasses.replace(LANGUAGE_MODEL, attention_bias=True),
    "qwen3": dataclasses.replace(LANGUAGE_MODEL, query_key_norm=True),
    "llama": dataclasses.replace(LANGUAGE_MODEL, tied=False),
    "t5": ENCODER_DECODER,
    "t5 v1.1": dataclasses.replace(ENCODER_DECODER, gated=True),
}
SIZES = {"layers": 3, "width": 4, "heads": 3, "head_size": 2, "feedforward": 5}


def lines(name):
    return weights_of(name.split()[0], COMPONENTS[name])


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_parameter_has_one_line(name):
    """Paths and shapes of the table are those of the tree that `init` makes."""
    component = COMPONENTS[name]
    tree = jax.eval_shape(lambda: component.init(jax.random.key(0), SPACE))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sizes = sizes_of(component, component.tokens(SPACE))
    weights = lines(name)
    assert {weight.path: weight.shape(sizes) for weight in weights} == shapes
    assert len(weights) == len(shapes)
    keys = [key for weight in weights for key in weight.keys(sizes)]
    assert len(set(keys)) == len(keys)
    counts = [np.prod(w.key_shape(sizes)) * len(w.keys(sizes)) for w in weights]
    assert sum(counts) == component.parameters(SPACE)


def test_the_keys_of_a_layer():
    """The frozen names of one layer of each network."""
    sizes = sizes_of(LANGUAGE_MODEL, 11)
    keys = {key for weight in TABLES["qwen2"] for key in weight.keys(sizes)}
    found = {key.removeprefix("model.layers.2.") for key in keys if ".layers.2." in key}
    linear = {f"self_attn.{each}_proj.weight" for each in "qkvo"}
    linear |= {f"mlp.{each}_proj.weight" for each in ("gate", "up", "down")}
    biases = {f"self_attn.{each}_proj.bias" for each in "qkv"}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    norms |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    assert found == linear | biases | norms
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert {key for key in keys if ".layers." not in key} == ends
    for family, copies in COPIES.items():
        assert set(copies.values()) <= {weight.key for weight in TABLES[family]}


def random_weights():
    """Lines of every layout, and one whose inner axis is neither last nor whole."""
    layouts = {(weight.theirs, weight.ours) for table in TABLES.values() for weight in table}
    assert len(layouts) == 12
    return [Weight("path", "key", *axes) for axes in sorted(layouts)]


@pytest.mark.parametrize("weight", random_weights(), ids=lambda weight: weight.theirs)
def test_layouts(weight):
    """There and back is the same; a part is that part of the whole, whatever axes it cuts."""
    sizes = SIZES | {"kv_heads": 2, "vocab": 6, "buckets": 4}
    tensor = np.random.default_rng(0).normal(size=weight.key_shape(sizes)).astype(np.float32)
    shape = weight.shape(sizes)
    whole = [slice(0, size) for size in shape]
    ours = weight.to_ours(tensor, whole, sizes)
    assert ours.shape == shape
    assert np.array_equal(weight.to_theirs(ours), tensor)
    parts = [[slice(0, size), slice(size // 2, size), slice(0, 1)] for size in shape]
    for index in itertools.product(*parts):
        read = tensor[weight.key_index(index, sizes)]
        assert np.array_equal(weight.to_ours(read, index, sizes), ours[index])
    # Of a matrix, no more is read than is needed but for what shares an axis.
    first = [slice(0, 1), *whole[1:]]
    assert tensor[weight.key_index(first, sizes)].size == tensor.size // shape[0]


def test_a_projection_multiplies_as_torch_does():
    """`nn.Linear` computes x W^T and splits the result into heads, here heads come first."""
    random = np.random.default_rng(0)
    weight = {weight.path: weight for weight in TABLES["llama"]}
    x, kernel = random.normal(size=4), random.normal(size=(6, 4))
    sizes = SIZES | {"kv_heads": 3}
    query = weight["layers/blocks/attention/query"]
    whole = [slice(0, size) for size in query.shape(sizes)[1:]]
    ours = query.to_ours(kernel, whole, sizes)
    expected = (kernel @ x).reshape(3, 2)
    np.testing.assert_allclose(np.einsum("d,dhk->hk", x, ours), expected)
    mixed, kernel = random.normal(size=(3, 2)), random.normal(size=(4, 6))
    output = weight["layers/blocks/attention/output"]
    whole = [slice(0, size) for size in output.shape(sizes)[1:]]
    ours = output.to_ours(kernel, whole, sizes)
    expected = kernel @ mixed.reshape(6)
    np.testing.assert_allclose(np.einsum("hk,hkd->d", mixed, ours), expected)


def test_keys_that_nobody_reads():
    biases = "EncDecAttention.relative_attention_bias.weight"
    for key in (
        "model.layers.3.self_attn.rotary_emb.inv_freq",
        f"decoder.block.0.layer.1.{biases}",
    ):
        assert HARMLESS.search(key)
    read = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for key in (read, "inv_freq.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert not HARMLESS.search(key)
