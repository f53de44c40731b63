"""What networks cost: parameters and FLOPs by formula.

FLOPs count the matrix multiplications (two per multiply-add) of forward and backward, the backward
pass as twice the forward pass. Norms, activations, lookups and the recomputation of `remat` are
left out, as is usual for model-FLOP utilisation; attention counts every pair of a row, because the
dense implementations compute them all. The compiler's own count serves as a check in the tests
only: of a scanned program it counts the body once.
"""

from __future__ import annotations

from jaxrec.backbones.layers import Stack

BACKWARD = 3
"""Forward and backward together cost three times the forward pass."""


def block_weights(stack: Stack) -> int:
    """Weights of one layer that take part in matrix multiplications."""
    projections = 2 * stack.heads + 2 * stack.kv_heads
    return stack.width * (stack.head_size * projections + 3 * stack.feedforward)


def stack_parameters(stack: Stack) -> int:
    """Parameters of all layers: matrices, biases, norms, the final norm."""
    small = 2 * stack.width
    if stack.attention_bias:
        small += (stack.heads + 2 * stack.kv_heads) * stack.head_size
    if stack.query_key_norm:
        small += 2 * stack.head_size
    return stack.layers * (block_weights(stack) + small) + stack.width


def stack_forward_flops(stack: Stack, rows: int, length: int) -> float:
    """FLOPs of the layers over `rows` rows of `length` tokens, forward only."""
    pairs = 2 * length * stack.heads * stack.head_size  # scores, and the mix of values
    return 2.0 * rows * length * stack.layers * (block_weights(stack) + pairs)
