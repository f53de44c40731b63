"""Which Hugging Face key is which parameter, and how its axes lie: one table, read both ways.

A matrix of `torch.nn.Linear` is `[out, in]`, and its heads lie side by side in one axis; here a
projection is `[in, heads, head_size]`, and the layers of a stack lie behind each other. So a line
of a table has the path, the key, and the axes of both, written as einops writes them:

    attention/query   self_attn.q_proj.weight   (heads head_size) width   width heads head_size

Rotary embedding needs no permutation, since both sides rotate halves.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

Sizes = Mapping[str, int]
"""Length of every named axis."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter and its key, or, with `{}` in the key, its keys: one a layer."""

    path: str
    """Names in the tree of parameters, joined with `/`."""
    key: str
    theirs: str
    """Axes of one tensor; those in brackets lie in one axis."""
    ours: str
    """Axes of the parameter, of one layer where there are layers."""
    stack: str = ""
    """The axis of layers in front: `layers` or `decoder_layers`; none without."""
    when: str = ""
    """Only where this field of the component is True."""
    unless: str = ""
    """Only where this field of the component is False."""

    def keys(self, sizes: Sizes) -> list[str]:
        """The keys, layer by layer."""
        if not self.stack:
            return [self.key]
        return [self.key.format(layer) for layer in range(sizes[self.stack])]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of the parameter."""
        stack = (self.stack,) if self.stack else ()
        return tuple(sizes[axis] for axis in (*stack, *self.ours.split()))

    def key_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of one tensor of the files."""
        return tuple(math.prod(sizes[axis] for axis in group) for group in _groups(self.theirs))

    def key_index(self, index: Sequence[slice], sizes: Sizes) -> tuple[slice, ...]:
        """The part of a tensor that a part of one layer of the parameter is made of.

        Of axes that lie in one, the first is cut; `to_ours` cuts the others.
        """
        cut = dict(zip(self.ours.split(), index))
        found = []
        for first, *others in _groups(self.theirs):
            inside = math.prod(sizes[axis] for axis in others)
            found.append(slice(cut[first].start * inside, cut[first].stop * inside))
        return tuple(found)

    def to_ours(self, part: np.ndarray, index: Sequence[slice], sizes: Sizes) -> np.ndarray:
        """What `key_index` selected of a tensor as that part of one layer of the parameter."""
        cut = dict(zip(self.ours.split(), index))
        inner = {axis for _, *others in _groups(self.theirs) for axis in others}
        lengths = {
            axis: sizes[axis] if axis in inner else each.stop - each.start
            for axis, each in cut.items()
        }
        turned = rearrange(part, f"{self.theirs} -> {self.ours}", **lengths)
        return turned[tuple(each if axis in inner else slice(None) for axis, each in cut.items())]

    def to_theirs(self, layer: np.ndarray) -> np.ndarray:
        """One layer of the parameter as a tensor of the files."""
        return rearrange(layer, f"{self.ours} -> {self.theirs}")


def _groups(pattern: str) -> list[list[str]]:
    """The axes of a pattern, those that lie in one together."""
    return [found.strip("()").split() for found in re.findall(r"\([^)]*\)|\w+", pattern)]


# Axes of theirs and of ours.
_VECTOR = ("width", "width")
_TABLE = ("vocab width", "vocab width")
_QUERIES = ("(heads head_size) width", "width heads head_size")
_KEYS = ("(kv_heads head_size) width", "width kv_heads head_size")
_QUERY_BIAS = ("(heads head_size)", "heads head_size")
_KEY_BIAS = ("(kv_heads head_size)", "kv_heads head_size")
_HEAD = ("head_size", "head_size")
_MIXED = ("width (heads head_size)", "heads head_size width")
_UP = ("feedforward width", "width feedforward")
_DOWN = ("width feedforward", "feedforward width")


def _block(path: str, key: str, axes: tuple[str, str], **when: str) -> Weight:
    """A weight of every layer of a language model."""
    path, key = f"layers/blocks/{path}", f"model.layers.{{}}.{key}"
    return Weight(path, key, *axes, stack="layers", **when)


LANGUAGE_MODEL = (
    Weight("tokens/table", "model.embed_tokens.weight", *_TABLE),
    _block("attention_norm/scale", "input_layernorm.weight", _VECTOR),
    _block("attention/query", "self_attn.q_proj.weight", _QUERIES),
    _block("attention/key", "self_attn.k_proj.weight", _KEYS),
    _block("attention/value", "self_attn.v_proj.weight", _KEYS),
    _block("attention/output", "self_attn.o_proj.weight", _MIXED),
    _block("attention/query_bias", "self_attn.q_proj.bias", _QUERY_BIAS, when="attention_bias"),
    _block("attention/key_bias", "self_attn.k_proj.bias", _KEY_BIAS, when="attention_bias"),
    _block("attention/value_bias", "self_attn.v_proj.bias", _KEY_BIAS, when="attention_bias"),
    _block("attention/query_norm/scale", "self_attn.q_norm.weight", _HEAD, when="query_key_norm"),
    _block("attention/key_norm/scale", "self_attn.k_norm.weight", _HEAD, when="query_key_norm"),
    _block("feedforward_norm/scale", "post_attention_layernorm.weight", _VECTOR),
    _block("feedforward/gate", "mlp.gate_proj.weight", _UP),
    _block("feedforward/up", "mlp.up_proj.weight", _UP),
    _block("feedforward/down", "mlp.down_proj.weight", _DOWN),
    Weight("layers/norm/scale", "model.norm.weight", *_VECTOR),
    Weight("output/kernel", "lm_head.weight", "vocab width", "width vocab", unless="tied"),
)
"""Qwen2.5, Qwen3 and Llama: the same network, with biases (Qwen2.5) or norms of queries and keys
(Qwen3)."""


def _t5_attention(side: str, stack: str, part: int, path: str, key: str) -> list[Weight]:
    """Part number `part` of every block of a stack: the norm, then the four projections."""
    path, place = f"{side}/blocks/{path}", f"{side}.block.{{}}.layer.{part}"
    projections = {
        "query": ("q", _QUERIES),
        "key": ("k", _QUERIES),
        "value": ("v", _QUERIES),
        "output": ("o", _MIXED),
    }
    return [
        Weight(f"{path}_norm/scale", f"{place}.layer_norm.weight", *_VECTOR, stack),
        *(
            Weight(f"{path}/{name}", f"{place}.{key}.{letter}.weight", *axes, stack)
            for name, (letter, axes) in projections.items()
        ),
    ]


def _t5_feedforward(side: str, stack: str, part: int) -> list[Weight]:
    """Part number `part` of every block of a stack: the norm, then ReLU's two or GELU's three."""
    path, place = f"{side}/blocks/feedforward", f"{side}.block.{{}}.layer.{part}"
    dense = f"{place}.DenseReluDense"
    return [
        Weight(f"{path}_norm/scale", f"{place}.layer_norm.weight", *_VECTOR, stack),
        Weight(f"{path}/up", f"{dense}.wi.weight", *_UP, stack, unless="gated"),
        Weight(f"{path}/gate", f"{dense}.wi_0.weight", *_UP, stack, when="gated"),
        Weight(f"{path}/up", f"{dense}.wi_1.weight", *_UP, stack, when="gated"),
        Weight(f"{path}/down", f"{dense}.wo.weight", *_DOWN, stack),
    ]


def _t5_ends(side: str) -> list[Weight]:
    """What a stack has once: the biases of distances, which the first layer keeps, and a norm."""
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Weight(f"{side}/bias/table", bias, "buckets heads", "buckets heads"),
        Weight(f"{side}/norm/scale", f"{side}.final_layer_norm.weight", *_VECTOR),
    ]


T5 = (
    Weight("tokens/table", "shared.weight", *_TABLE),
    *_t5_attention("encoder", "layers", 0, "attention", "SelfAttention"),
    *_t5_feedforward("encoder", "layers", 1),
    *_t5_ends("encoder"),
    *_t5_attention("decoder", "decoder_layers", 0, "attention", "SelfAttention"),
    *_t5_attention("decoder", "decoder_layers", 1, "cross_attention", "EncDecAttention"),
    *_t5_feedforward("decoder", "decoder_layers", 2),
    *_t5_ends("decoder"),
)
"""T5 with a tied output."""

TABLES: Mapping[str, tuple[Weight, ...]] = {
    "qwen2": LANGUAGE_MODEL,
    "qwen3": LANGUAGE_MODEL,
    "llama": LANGUAGE_MODEL,
    "t5": T5,
}
"""The table of every family; families are named as in config.json (`model_type`)."""

_EMBEDDING = "model.embed_tokens.weight"
COPIES: Mapping[str, Mapping[str, str]] = {
    "qwen2": {"lm_head.weight": _EMBEDDING},
    "qwen3": {"lm_head.weight": _EMBEDDING},
    "llama": {"lm_head.weight": _EMBEDDING},
    "t5": {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
}
"""Keys that some files hold once more although they are tied, and what they must equal."""

HARMLESS = re.compile(
    r"\.rotary_emb\.inv_freq$|\.EncDecAttention\.relative_attention_bias\.weight$"
)
"""Keys of old files that nobody reads: frequencies that follow from the configuration, and a table
of biases that T5 has and does not use."""


def weights_of(family: str, component: Any) -> tuple[Weight, ...]:
    """The lines of a family's table that a component has."""
    return tuple(
        weight
        for weight in TABLES[family]
        if (not weight.when or getattr(component, weight.when))
        and (not weight.unless or not getattr(component, weight.unless))
    )


def sizes_of(component: Any, vocabulary: int) -> dict[str, int]:
    """Length of every named axis of a `LanguageModel` or a `T5`.

    Args:
        component: the network.
        vocabulary: rows of its token table.
    """
    sizes = {
        name: getattr(component, name)
        for name in ("layers", "width", "heads", "head_size", "feedforward")
    }
    sizes["vocab"] = vocabulary
    if hasattr(component, "kv_heads"):
        return sizes | {"kv_heads": component.kv_heads}
    return sizes | {
        "decoder_layers": component.decoder.layers,
        "buckets": component.distance_buckets,
    }
