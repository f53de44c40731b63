"""RosePO: DPO at smoothing 0, indifferent at one half, row by row between."""

import numpy as np
import pytest

from jaxrec.objectives.dpo import DPO
from jaxrec.objectives.rose_po import RosePO
from tests.objectives.test_preference_pairs import random_pairs, with_slopes


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_smoothing_for_all_is_smoothed_dpo(smoothing):
    pairs = random_pairs()._replace(smoothing=np.full(5, smoothing))
    found = with_slopes(RosePO(0.3), pairs)
    expected = with_slopes(DPO(0.3, label_smoothing=smoothing), pairs)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-6)
    np.testing.assert_allclose(found[3].chosen, expected[3].chosen, rtol=1e-5)
    np.testing.assert_allclose(found[3].rejected, expected[3].rejected, rtol=1e-5)


def test_at_one_half_the_two_sides_may_be_swapped():
    pairs = random_pairs(4, 1)._replace(smoothing=np.full(4, 0.5))
    swapped = pairs._replace(
        chosen=pairs.rejected[:, 0],
        rejected=pairs.chosen[:, None],
        reference_chosen=pairs.reference_rejected[:, 0],
        reference_rejected=pairs.reference_chosen[:, None],
    )

    def total(pairs):
        return with_slopes(RosePO(0.3), pairs)[0]

    np.testing.assert_allclose(total(pairs), total(swapped), rtol=1e-6)
    doubt = np.full(4, 0.2)
    sides = total(pairs._replace(smoothing=doubt)), total(swapped._replace(smoothing=doubt))
    assert abs(float(sides[0] - sides[1])) > 0.1


def test_every_row_has_its_own():
    pairs = random_pairs()._replace(
        smoothing=np.array([0.0, 0.25, 0.5, 0.1, 0.1]),
        valid=np.arange(4) < np.array([2, 1, 0, 0, 0])[:, None],
    )
    x = np.zeros((2, 2))
    for i, j in np.ndindex(2, 2):
        gained = pairs.chosen[i] - pairs.reference_chosen[i]
        x[i, j] = 0.3 * (gained - pairs.rejected[i, j] + pairs.reference_rejected[i, j])
    expected = np.logaddexp(0, -x[0]).sum()
    expected += 0.75 * np.logaddexp(0, -x[1, 0]) + 0.25 * np.logaddexp(0, x[1, 0])
    total, weight, metrics, _ = with_slopes(RosePO(0.3), pairs)
    np.testing.assert_allclose((total, weight), (expected, 3), rtol=1e-5)
    assert [float(each) for each in metrics["smoothing"]] == [0.25, 2.0]


def test_pairs_without_an_oracle_are_refused():
    with pytest.raises(ValueError, match=r"RosePO reads pairs.smoothing.*have none"):
        with_slopes(RosePO(), random_pairs()._replace(smoothing=None))
