"""Attention by JAX's splash kernel on TPUs: blocks that the mask forbids are never computed.

The kernel holds no array of all scores, forward or backward; the mask itself is read block by
block, and a block without an allowed pair is skipped. Under a mesh every device runs it on its own
rows and heads (`jax.shard_map`), for the compiler cannot split a kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

LANES = 128
"""Queries and keys of a block at least: rows have to be a multiple of it."""
ROWS, HEADS = ("data", "fsdp"), "tensor"
"""Mesh axes over which rows and heads lie (`jaxrec.parallel`)."""


def splash_attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    mask: Bool[Array, "#b #h q t"],
    *,
    interpret: bool = False,
) -> Float[Array, "b q h d"]:
    """`softmax(q k^T / sqrt(d)) v` over the pairs that the mask allows.

    What a query without any key gets is not defined; `attention` writes zeros there.

    Args:
        q: queries, `h` heads.
        k: keys, `g` heads; `g` divides `h`.
        v: values.
        mask: True where the query may see the key.
        interpret: run the kernel without a TPU, slowly: for tests.

    Raises:
        ValueError: rows that do not divide into blocks.
    """
    if q.shape[1] % LANES or k.shape[1] % LANES:
        raise ValueError(
            f"attention='splash' works in blocks of {LANES} tokens, got rows of {q.shape[1]} "
            f"queries and {k.shape[1]} keys; make the rows a multiple, or use attention='xla'."
        )
    pairs = (q.shape[0], q.shape[2] if mask.shape[1] > 1 else 1, *mask.shape[2:])
    run = functools.partial(_rows, interpret=interpret)
    arguments = (q * q.shape[-1] ** -0.5, k, v, jnp.broadcast_to(mask, pairs))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(*arguments)
    whole = PartitionSpec(ROWS, None, HEADS)
    masks = PartitionSpec(ROWS, HEADS if pairs[1] > 1 else None)
    # Nothing is said about how kernels vary over the mesh, so that cannot be checked.
    split = jax.shard_map(
        run, in_specs=(whole, whole, whole, masks), out_specs=whole, check_vma=False
    )
    return split(*arguments)


def _rows(q: Array, k: Array, v: Array, mask: Array, *, interpret: bool) -> Array:
    """The kernel on the rows and heads of one device."""
    # Imported where it is used: it takes a second, and TPUs alone have a use for it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def row(q: Array, k: Array, v: Array, mask: Array) -> Array:
        heads = jnp.broadcast_to(mask, (q.shape[1], *mask.shape[1:]))
        kernel = splash_attention_kernel.make_splash_mha(
            heads, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # Made under jit, the kernel holds a traced flag where its own code asks a plain one.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        turned = (jnp.swapaxes(each, 0, 1) for each in (q, k, v))
        return jnp.swapaxes(kernel(*turned), 0, 1)

    return jax.vmap(row)(q, k, v, mask)
