"""Rejected items from easy to hard, by the codes they share with the chosen one (METHODS O17).

Align3GR (arXiv:2511.11255) trains softmax-DPO in stages: rejected items share 0, then 1, then 2
leading codes with the chosen item, and each stage starts from the last one, which becomes its
reference. Meant for `SDPO`, with 20 rejected items; its second half, feedback of rising subtlety,
is a choice of the rejected items and not of their codes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


def shared_prefix(
    codes_a: Int32[Array, "*#n l"], codes_b: Int32[Array, "*#n l"]
) -> Int32[Array, "*n"]:
    """Number of leading codes that two semantic IDs have in common; `l` where they are the same.

    Args:
        codes_a: leading axes broadcast against those of `codes_b`.
        codes_b: the others.

    Example:
        >>> import jax.numpy as jnp
        >>> shared_prefix(jnp.array([1, 2, 3]), jnp.array([[1, 2, 3], [1, 0, 3]])).tolist()
        [3, 1]
    """
    agree = (codes_a == codes_b).astype(jnp.int32)
    return jnp.sum(jnp.cumprod(agree, axis=-1), axis=-1, dtype=jnp.int32)


def difficulty_mask(
    chosen_codes: Int32[Array, "b l"],
    rejected_codes: Int32[Array, "b n l"],
    stage: int,
    *,
    or_more: bool = False,
) -> Bool[Array, "b n"]:
    """Which rejected items belong to a stage: those that share exactly `stage` leading codes.

    Exactly, for the published stages are said to go 0, 1, 2; whether they overlap is silent. The
    chosen item itself is never among them. Rows may be left with none, and then have no weight.
    Where a last code only tells colliding items apart, sharing all codes but that one means the
    same content: such items enter with `or_more` or at stage `l - 1` only.

    Args:
        chosen_codes: of the chosen items.
        rejected_codes: of the rejected ones.
        stage: 0 is the easiest.
        or_more: also those that share more, for the last stage of a schedule.

    Raises:
        ValueError: no item can belong to the stage: it is outside `0 .. l - 1`.

    Example:
        >>> import jax.numpy as jnp
        >>> chosen, rejected = jnp.array([[1, 2]]), jnp.array([[[0, 2], [1, 0], [1, 2]]])
        >>> [difficulty_mask(chosen, rejected, stage)[0].tolist() for stage in (0, 1)]
        [[True, False, False], [False, True, False]]
    """
    levels = chosen_codes.shape[-1]
    if not 0 <= stage < levels:
        raise ValueError(
            f"stage={stage} is none of items with {levels} codes: other items share 0 to "
            f"{levels - 1} of them."
        )
    shared = shared_prefix(chosen_codes[:, None], rejected_codes)
    return (stage <= shared) & (shared < levels) if or_more else shared == stage
