import numpy as np
import pytest

from jaxrec.data.order import BLOCK, ShuffledBlocks, permute


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation(length):
    for key in ((0, 0), (7, 3)):
        found = permute(np.arange(length), length, key)
        assert np.array_equal(np.sort(found), np.arange(length))


def test_permute_depends_on_every_part_of_the_key():
    index = np.arange(1000)
    orders = [permute(index, 1000, key) for key in ((0, 1), (1, 0), (0, 0), (1, 1))]
    for first in range(4):
        for second in range(first):
            # Two random orders of 1000 agree in one place on average.
            assert (orders[first] == orders[second]).sum() < 10


def test_every_place_is_equally_likely():
    length, keys = 12, 1200
    found = np.stack([permute(np.arange(length), length, (key,)) for key in range(keys)])
    counts = np.stack([np.bincount(found[:, place], minlength=length) for place in range(length)])
    expected = keys / length
    # 121 degrees of freedom: mean 121, standard deviation 15.6.
    assert ((counts - expected) ** 2 / expected).sum() < 121 + 5 * 15.6


def test_neighbours_are_torn_apart():
    order = permute(np.arange(100_000), 100_000, (3, 0))
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_epochs_repeat_everything_in_another_order():
    order = ShuffledBlocks(700, seed=5)
    epochs = order.take(0, 2100).reshape(3, 700)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(700))
    assert (epochs[0] == epochs[1]).sum() < 10
    assert (ShuffledBlocks(700, seed=6).take(700, 700) == epochs[1]).sum() < 10
    assert np.array_equal(ShuffledBlocks(700, seed=5).take(0, 2100).reshape(3, 700), epochs)


def test_it_is_read_at_any_place():
    order = ShuffledBlocks(37, seed=1)
    whole = order.take(0, 4 * BLOCK)
    assert np.array_equal(order[2], whole[2 * BLOCK : 3 * BLOCK])
    for first, count in ((0, 1), (BLOCK - 1, 2), (5, 3 * BLOCK), (2 * BLOCK, BLOCK), (9, 0)):
        assert np.array_equal(order.take(first, count), whole[first : first + count])


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_hosts_are_disjoint_and_together_have_all(hosts):
    orders = [ShuffledBlocks(100, seed=2, host=host, hosts=hosts) for host in range(hosts)]
    mine = [order.take(0, order.per_epoch).tolist() for order in orders]
    assert sorted(each for part in mine for each in part) == list(range(100))
    for epoch in range(3):
        for order, first in zip(orders, mine):
            again = order.take(epoch * order.per_epoch, order.per_epoch)
            assert set(again.tolist()) == set(first)
