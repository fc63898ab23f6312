"""Coarse labels of a codebook."""

import numpy as np
import pytest

from nexttok.bottlenecks import clusters
from nexttok.config import ConfigError

CENTRES = np.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
OWN = np.asarray([0, 0, 0, 0, 1, 1, 1, 2, 2])
ROWS = CENTRES[OWN] + 0.1 * np.random.default_rng(0).standard_normal((9, 2))
COUNTS = np.asarray([1.0, 1, 1, 1, 50, 0, 0, 3, 3])


def found(size=3):
    return clusters.cluster(ROWS, COUNTS, size, seed=0)


def test_separate_groups_are_found_in_the_order_of_their_frequency():
    labels = found().labels
    np.testing.assert_array_equal(labels, np.asarray([2, 0, 1])[OWN])
    again = clusters.cluster(ROWS, COUNTS, 3, seed=0)
    np.testing.assert_array_equal(labels, again.labels)


def test_every_row_is_nearest_to_its_own_centre_and_centres_are_means():
    rows = np.random.default_rng(1).standard_normal((64, 4))
    made = clusters.cluster(rows, np.ones(64), 8, seed=3)
    distances = np.square(rows[:, None] - made.centres[None]).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), made.labels)
    assert set(made.labels) == set(range(8))
    for k in range(8):
        np.testing.assert_allclose(made.centres[k], rows[made.labels == k].mean(0), rtol=1e-6)
    own = distances[np.arange(64), made.labels]
    assert made.inertia == pytest.approx(own.sum(), rel=1e-6)
    nearest = clusters.representatives(rows, made)
    np.testing.assert_array_equal(made.labels[nearest], np.arange(8))
    for k, code in enumerate(nearest):
        assert own[code] == own[made.labels == k].min()


def test_as_many_clusters_as_codes_are_the_codes():
    made = found(9)
    assert sorted(made.labels) == list(range(9))
    np.testing.assert_allclose(made.centres[made.labels], ROWS, rtol=1e-6)


def test_entropies_of_label_and_code_add_to_that_of_codes():
    counts = np.asarray([1.0, 1, 2, 4])
    coarse, rest = clusters.entropies(counts, np.asarray([0, 0, 0, 1]))
    assert coarse == pytest.approx(1.0)
    assert rest == pytest.approx(0.5 * 1.5)


def test_members_are_drawn_evenly_from_the_same_cluster():
    labels = found().labels
    ids = np.full((3000,), 5, np.int32)
    drawn = clusters.members(ids, labels, np.random.default_rng(0))
    codes, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(codes, np.flatnonzero(OWN == 1))
    assert np.abs(counts / 3000 - 1 / 3).max() < 0.04


@pytest.mark.parametrize("size", [1, 10])
def test_impossible_numbers_of_clusters_are_named(size):
    with pytest.raises(
        ConfigError, match=rf"eval\.clusters = {size}: expected 2 \.\. 9, the codes"
    ):
        found(size)
