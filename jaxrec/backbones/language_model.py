"""`LanguageModel`: Qwen2.5, Qwen3 and Llama, which read text and semantic IDs and write the latter.

The network of the published checkpoints to the digit (METHODS B2): pre-RMSNorm, rotary positions
in the rotate-half convention, grouped-query attention with scale 1/sqrt(head size), SwiGLU. What
tells the families apart is in four fields:

    family   attention_bias   query_key_norm   rope_base          norm_epsilon   paper
    Qwen2.5  yes              no               1e6                1e-6           arXiv:2412.15115
    Qwen3    no               yes              1e6                1e-6           arXiv:2505.09388
    Llama 3  no               no               5e5, rope_scaling  1e-5           arXiv:2407.21783

The vocabulary is that of the text, then one token for every code of every level. It trains on
`TextBatch` (instructions, loss on the responses), and answers histories (`Events`) by the Generator
contract: a history is laid out as a `Prompt`, and the codes of the next item continue it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxrec.backbones import cost
from jaxrec.backbones.caches import FlatCache, of_parents, start_past
from jaxrec.backbones.heads import level_logits
from jaxrec.backbones.layers import (
    BeamKeys,
    BeamMask,
    Embedding,
    Layers,
    Stack,
    apply_module,
    logical_axes,
    normal,
    unbox,
)
from jaxrec.backbones.masks import TokenMetadata, compile_mask, packed
from jaxrec.backbones.prompts import Prompt, lay_prompts
from jaxrec.backbones.rotary import RopeScaling, Rotation, rope_rotation
from jaxrec.types import Events, PyTree, Tables, TextBatch, TokenSpace


class TextStates(NamedTuple):
    """What a text is foretold from; logits are their product, which is too large to be made whole.

    The state at a token foretells the token after it.
    """

    states: Float[Array, "b t d"]
    kernel: Float[Array, "d v"]
    tokens: Int32[Array, "b t"]
    """Rows of the token table that were read."""


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder-only language model with tokens for semantic IDs; obeys the Generator contract.

    The defaults are a tiny model over bytes; `jaxrec.interop.read_config` gives published ones.

    Raises:
        ValueError: sizes that do not divide, unknown options.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    feedforward: int = 192
    text_vocabulary: int = 256
    """Rows of the token table before those of the codes."""
    tied: bool = True
    """Whether the output matrix is the token table."""
    rope_base: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    attention_bias: bool = False
    """Biases of queries, keys and values (Qwen2.5)."""
    query_key_norm: bool = False
    """A norm of every query and key before they are rotated (Qwen3)."""
    prompt: Prompt = Prompt()
    """How a history is asked."""
    dropout: float = 0.0
    """On every residual branch; the published models have none."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, a third more arithmetic."""
    unroll: int = 1
    """Layers an iteration of the scan over layers."""
    dtype: str = "float32"
    """Type of the arithmetic; norms, rotations, softmax and logits stay float32."""
    initial_scale: float = 0.02
    attention: str = "xla"
    """Implementation of attention, see `jaxrec.backbones.attention.IMPLEMENTATIONS`."""

    answers_last_only: ClassVar[bool] = True
    """`forward` of histories answers for the last event of a row."""

    def __post_init__(self) -> None:
        if self.text_vocabulary < 1:
            raise ValueError(f"text_vocabulary={self.text_vocabulary} must be at least 1.")
        _ = self.stack  # its own checks

    @property
    def stack(self) -> Stack:
        """Shape of the layers."""
        shared = {field.name for field in dataclasses.fields(Stack)}
        mine = {field.name for field in dataclasses.fields(self)}
        return Stack(**{name: getattr(self, name) for name in shared & mine})

    def tokens(self, space: TokenSpace) -> int:
        """Rows of the token table: the text, then the codes of all levels."""
        return self.text_vocabulary + sum(space.sizes)

    def parameters(self, space: TokenSpace) -> int:
        """Number of parameters, by formula."""
        tables = (1 if self.tied else 2) * self.tokens(space) * self.width
        return tables + cost.stack_parameters(self.stack)

    def flops(self, space: TokenSpace, rows: int, length: int) -> float:
        """FLOPs of forward and backward of `rows` rows of `length` tokens of text, by formula."""
        output = 2.0 * rows * length * self.width * self.tokens(space)
        layers = cost.stack_forward_flops(self.stack, rows, length)
        return cost.BACKWARD * (layers + output)

    def init(self, key: Array, space: TokenSpace) -> PyTree:
        """Random parameters: nested dictionaries of float32 arrays, normal with `initial_scale`;
        projections into the residual stream are divided by sqrt(2 layers)."""
        return _init(self, key, space)

    def axes(self, space: TokenSpace) -> PyTree:
        """Logical axis names of every parameter: the tree of `init` with a tuple at each leaf."""
        return logical_axes(jax.eval_shape(lambda: self._boxed(jax.random.key(0), space)))

    def forward(
        self,
        params: PyTree,
        tables: Tables,
        batch: Events | TextBatch,
        space: TokenSpace,
        *,
        key: Array | None = None,
    ) -> TextStates | Float[Array, "b 1 l k"]:
        """Reads texts, or answers histories.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: texts, or histories of one segment a row whose last column is the target.
            space: the token space of the codes.
            key: of the dropout; None switches it off.

        Returns:
            Of texts, their states and the output matrix. Of histories, teacher-forced float32
            logits of the codes of the last event: those at level `l` know the history and codes
            `0..l-1`.
        """
        if isinstance(batch, TextBatch):
            tokens = self.text_tokens(tables, batch, space)
            metadata = TokenMetadata(batch.segment, batch.position)
            states, _ = self._run(params, self._vectors(params, tokens), metadata, key=key)
            return TextStates(states, self.output(params), tokens)
        codes = self._code_tokens(tables, batch.item, space)
        history = jax.tree.map(lambda array: array[:, :-1], batch)
        laid = lay_prompts(self.prompt, history, codes[:, :-1])
        answer = codes[:, -1, :-1]
        tokens = jnp.concatenate([laid.tokens, answer], axis=1)
        after = jnp.arange(1, space.levels, dtype=jnp.int32)
        position = jnp.concatenate([laid.position, laid.position[:, -1:] + after], axis=1)
        exists = jnp.concatenate([laid.exists, jnp.ones(answer.shape, bool)], axis=1)
        metadata = TokenMetadata(exists.astype(jnp.int32), position)
        states, _ = self._run(params, self._vectors(params, tokens), metadata, key=key)
        states = jnp.moveaxis(states[:, -space.levels :], 1, 0)[:, :, None]
        logits = level_logits(states, self._code_kernel(params, space), space)
        return jnp.moveaxis(logits, 0, 2)

    def prefill(
        self, params: PyTree, tables: Tables, batch: Events, space: TokenSpace
    ) -> FlatCache:
        """Reads one history a row as a prompt, for `step` to continue with the next item.

        Args:
            params: from `init`.
            tables: codes of the items.
            batch: segment 1 or 0; a row of padding is an empty history.
            space: the token space of the codes.

        Returns:
            A cache of one beam a row.
        """
        codes = self._code_tokens(tables, batch.item, space)
        laid = lay_prompts(self.prompt, batch, codes)
        metadata = TokenMetadata(laid.exists.astype(jnp.int32), laid.position)
        states, kept = self._run(params, self._vectors(params, laid.tokens), metadata, keep=True)
        slots = max(space.levels - 1, 1)  # nothing follows the last code
        return FlatCache(
            states[:, -1:], start_past(*kept, laid.exists, laid.position[:, -1], slots)
        )

    def step(
        self,
        params: PyTree,
        cache: FlatCache,
        codes: Int32[Array, "b w"],
        parents: Int32[Array, "b w"],
        level: int | Int32[Array, ""],
        space: TokenSpace,
    ) -> tuple[Float[Array, "b w k"], FlatCache]:
        """Logits of the codes at `level` for every beam.

        Args:
            params: from `init`.
            cache: from `prefill` or the step before.
            codes: codes that the beams chose at `level - 1`; ignored at level 0.
            parents: which beam of the cache each beam continues.
            level: 0 as a Python integer; later levels may be traced.
            space: the token space of the codes.

        Returns:
            Logits, and the cache of the new beams.
        """
        user, past = of_parents(cache.user, parents), cache.past.reorder(parents)
        states = jnp.broadcast_to(user, (*codes.shape, user.shape[-1]))
        if isinstance(level, jax.Array) or level > 0:
            offsets = jnp.asarray(self._offsets(space), jnp.int32)
            x = self._vectors(params, offsets[level - 1] + codes)
            slot = jnp.asarray(level, jnp.int32) - 1
            states, (beam_keys, beam_values) = apply_module(
                Layers(self.stack, keep=True),
                params["layers"],
                x,
                self._rotation(past.position[:, None] + slot + 1),
                BeamMask(past.key_mask, slot),
                BeamKeys(past.keys, past.values, past.beam_keys, past.beam_values),
            )
            past = past._replace(beam_keys=beam_keys, beam_values=beam_values)
        logits = level_logits(states, self._code_kernel(params, space), space, level)
        return logits, FlatCache(user, past)

    def text_tokens(
        self, tables: Tables, batch: TextBatch, space: TokenSpace
    ) -> Int32[Array, "b t"]:
        """Rows of the token table: those of the text, and those of the codes of items."""
        level = jnp.clip(batch.token, 0, space.levels - 1)
        codes = jnp.take(tables.codes, batch.item, axis=0, mode="clip")
        code = jnp.take_along_axis(codes, level[..., None], axis=-1)[..., 0]
        offsets = jnp.asarray(self._offsets(space), jnp.int32)
        return jnp.where(batch.item >= 0, offsets[level] + code, batch.token)

    def output(self, params: PyTree) -> Float[Array, "d v"]:
        """The output matrix, in the type of the arithmetic."""
        kernel = params["tokens"]["table"].T if self.tied else params["output"]["kernel"]
        return kernel.astype(self.dtype)

    def _offsets(self, space: TokenSpace) -> tuple[int, ...]:
        """Row of the first code of every level."""
        return tuple(self.text_vocabulary + at - space.offsets[0] for at in space.offsets)

    def _code_tokens(self, tables: Tables, item: Array, space: TokenSpace) -> Array:
        codes = jnp.take(tables.codes, item, axis=0, mode="clip")
        return codes + jnp.asarray(self._offsets(space), codes.dtype)

    def _code_kernel(self, params: PyTree, space: TokenSpace) -> Float[Array, "l d k"]:
        """The columns of every level's codes as output matrices; narrow levels end in zeros."""
        kernel, matrices = self.output(params), []
        for start, size in zip(self._offsets(space), space.sizes):
            columns = kernel[:, start : start + size]
            matrices.append(jnp.pad(columns, ((0, 0), (0, space.width - size))))
        return jnp.stack(matrices)

    def _vectors(self, params: PyTree, tokens: Array) -> Float[Array, "b t d"]:
        rows = params["tokens"]["table"].shape[0]
        return apply_module(Embedding(self.stack, rows), params["tokens"], tokens)

    def _rotation(self, positions: Array) -> Rotation:
        return rope_rotation(positions, self.head_size, self.rope_base, self.rope_scaling)

    def _run(
        self,
        params: PyTree,
        x: Array,
        metadata: TokenMetadata,
        *,
        keep: bool = False,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """The layers over whole rows; with `keep`, also every layer's keys and values."""
        dropped = key is not None and round(self.dropout * 256) > 0
        keys = jax.random.split(key, self.layers) if dropped else None
        mask, rotation = compile_mask(packed, metadata), self._rotation(metadata.position)
        layers = Layers(self.stack, keep)
        return apply_module(layers, params["layers"], x, rotation, mask, None, keys)

    def _boxed(self, key: Array, space: TokenSpace) -> PyTree:
        """Initialises every piece on the smallest input it takes."""
        index = jnp.zeros((1, 1), jnp.int32)
        inputs = (
            jnp.zeros((1, 1, self.width), self.dtype),
            self._rotation(index),
            jnp.ones((1, 1, 1, 1), bool),
        )
        token_key, layers_key, output_key = jax.random.split(key, 3)
        table = Embedding(self.stack, self.tokens(space))
        params = {
            "tokens": table.init(token_key, index)["params"],
            "layers": Layers(self.stack).init(layers_key, *inputs)["params"],
        }
        if not self.tied:
            output = _Output(self.stack, self.tokens(space))
            params["output"] = output.init(output_key)["params"]
        return params


class _Output(nn.Module):
    """An output matrix of its own."""

    cfg: Stack
    columns: int

    @nn.compact
    def __call__(self) -> Array:
        init = normal(self.cfg.initial_scale, "embed", "vocab")
        return self.param("kernel", init, (self.cfg.width, self.columns))


@functools.partial(jax.jit, static_argnames=("model", "space"))
def _init(model: LanguageModel, key: Array, space: TokenSpace) -> PyTree:
    """Compiled, so that the arithmetic of the pieces, whose results nobody reads, is dropped."""
    return unbox(model._boxed(key, space))
