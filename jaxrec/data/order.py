"""An endless shuffled order of numbers that can be read at any place: a keyed permutation.

Grain's own shuffle is such a permutation too, but is called from Python once per element, and that
took most of the time of a packed batch. This one permutes a whole block in numpy and
keeps no table, so an order over billions of events costs no memory.
"""

from __future__ import annotations

import sys

import grain
import numpy as np
from jaxtyping import Int64

ROUNDS = 6
"""Feistel rounds; four make a pseudo-random permutation (Luby and Rackoff, 1988), two are spare
for domains of a few elements."""
BLOCK = 1024
"""Numbers of one element of the order."""


def permute(
    index: Int64[np.ndarray, " i"], length: int, key: tuple[int, ...]
) -> Int64[np.ndarray, " i"]:
    """Where a keyed permutation of 0..length-1 sends each index.

    A balanced Feistel network over the smallest even number of bits that holds `length`; results
    outside the range walk on through it (J. Black and P. Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002).

    Args:
        index: indices, each 0..length-1.
        length: size of the domain.
        key: non-negative numbers; another key, another permutation.

    >>> sorted(permute(np.arange(5), 5, key=(0, 1)).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max((length - 1).bit_length() + 1, 2) // 2)
    round_keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    value = _encrypt(index.astype(np.uint64), half, round_keys)
    outside = np.flatnonzero(value >= length)
    while len(outside):
        value[outside] = _encrypt(value[outside], half, round_keys)
        outside = outside[value[outside] >= length]
    return value.astype(np.int64)


class ShuffledBlocks(grain.MapDataset):
    """The numbers of one host in shuffled order, epoch after epoch, `BLOCK` at a time.

    Host `h` of `hosts` owns h, h + hosts, h + 2 hosts, ... below `total`: the slice is taken before
    the shuffle, so hosts never share a number and together have all. Each epoch has an order of
    its own.
    """

    def __init__(self, total: int, *, seed: int, host: int = 0, hosts: int = 1):
        """Describes the order.

        Args:
            total: numbers over all hosts.
            seed: seed of the order.
            host: which host this is.
            hosts: how many there are.
        """
        super().__init__()
        self._host, self._hosts, self._seed = host, hosts, seed
        self.per_epoch = len(range(host, total, hosts))
        """Numbers of this host in one epoch."""

    def __len__(self) -> int:
        return sys.maxsize // BLOCK

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        place = np.arange(index * BLOCK, (index + 1) * BLOCK)
        epoch, within = np.divmod(place, self.per_epoch)
        numbers = np.empty(BLOCK, np.int64)
        for each in np.unique(epoch).tolist():
            chosen = epoch == each
            numbers[chosen] = permute(within[chosen], self.per_epoch, (self._seed, each))
        return numbers * self._hosts + self._host

    def take(self, first: int, count: int) -> Int64[np.ndarray, " count"]:
        """The numbers at the places `first .. first+count-1` of the endless order."""
        blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
        numbers = np.concatenate([self[block] for block in blocks])
        skipped = first - blocks.start * BLOCK
        return numbers[skipped : skipped + count]


def block_of(batch: int, numbers: int, rows: int, lookahead: int) -> tuple[int, int]:
    """Which batches are composed together with one of an endless order.

    Blocks begin anew with every epoch, so that each epoch has every number once, up to the batch
    that two epochs share.

    Args:
        batch: index of the batch in the order.
        numbers: of one epoch.
        rows: numbers of a batch.
        lookahead: batches of a block.

    Returns:
        The first batch of its block, and how many there are.

    >>> [block_of(batch, numbers=10, rows=3, lookahead=3) for batch in range(7)]
    [(0, 3), (0, 3), (0, 3), (3, 1), (4, 3), (4, 3), (4, 3)]
    """
    epoch = batch * rows // numbers
    begin, end = -(-epoch * numbers // rows), -(-(epoch + 1) * numbers // rows)
    block = begin + (batch - begin) // lookahead * lookahead
    return block, min(lookahead, end - block)


def _encrypt(value: np.ndarray, half: np.uint64, round_keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return left << half | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit moves every
    output bit. Products wrap modulo 2**64, as they should."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
