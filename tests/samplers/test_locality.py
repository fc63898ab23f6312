"""LPD's orders."""

import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.samplers.locality import locality_order, locality_orders

SIZES = (1, 2, 3, 4, 6, 8, 12)


def test_orders_are_permutations_and_differ():
    pool = locality_orders((6, 6), SIZES, 4)
    assert pool.shape == (4, 36)
    for order in pool:
        np.testing.assert_array_equal(np.sort(order), np.arange(36))
    assert len(np.unique(pool, axis=0)) == 4
    np.testing.assert_array_equal(pool, locality_orders((6, 6), SIZES, 4))


def test_near_cells_come_first_and_stand_apart():
    order = locality_order((6, 6), SIZES, np.random.default_rng(0))
    cells = np.stack(np.divmod(order, 6), axis=1)
    at = np.cumsum([0, *SIZES])
    for k in range(1, 4):  # while there is room
        known, new = cells[: at[k]], cells[at[k] : at[k + 1]]
        near = [np.abs(known - cell).max(1).min() == 1 for cell in new]
        gaps = [np.abs(a - b).max() for i, a in enumerate(new) for b in new[:i]]
        assert min(gaps, default=2) > 1
        assert near[0]
    one = locality_order((1, 4), (1, 1, 1, 1), np.random.default_rng(1))
    steps = [min(abs(int(b) - int(a)) for a in one[: i + 1]) for i, b in enumerate(one[1:])]
    assert steps == [1, 1, 1]  # each borders on what is known


def test_sizes_must_sum_to_the_cells():
    with pytest.raises(ConfigError, match="steps that sum to 4 tokens"):
        locality_order((2, 2), (1, 2), np.random.default_rng(0))
