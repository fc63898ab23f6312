"""Logit transforms against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.samplers.logits import kth_largest, top_k, top_p, warper

LOGITS = 3.0 * jax.random.normal(jax.random.key(0), (64, 50))


def kept(x):
    return np.isfinite(np.asarray(x))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8, 0.95, 0.999])
def test_top_p_is_the_smallest_set_of_mass_p(p):
    got = kept(top_p(LOGITS, p))
    probs = np.asarray(jax.nn.softmax(LOGITS, -1), np.float64)
    for row, keep in zip(probs, got, strict=True):
        order = np.argsort(-row)
        before = np.cumsum(row[order]) - row[order]
        expected = np.zeros_like(keep)
        expected[order[before < p]] = True
        np.testing.assert_array_equal(keep, expected)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_top_k_keeps_k(k):
    assert (kept(top_k(LOGITS, k)).sum(-1) == k).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kth_largest_is_that_of_a_sort(dtype):
    x = np.random.default_rng(0).standard_normal((50, 40)) * 10.0 ** np.arange(-25, 25)[:, None]
    x[:, :3], x[::2, 3:9], x[1::7, 5:] = 0.0, -1.5, -np.inf
    x[::3, 0], x[::5, 1] = -0.0, np.inf
    x = jnp.asarray(x, dtype)
    for k in (1, 2, 7, 39, 40):
        expected = -np.sort(-np.asarray(x, np.float32), axis=-1)[:, k - 1 : k]
        np.testing.assert_array_equal(np.asarray(kth_largest(x, k), np.float32), expected)


def test_top_k_keeps_ties():
    assert kept(top_k(jnp.asarray([[3.0, 1.0, 1.0, 0.0]]), 2)).tolist() == [[1, 1, 1, 0]]
    assert kept(top_k(jnp.asarray([[1.0, 1.0, 0.0]]), 1)).tolist() == [[True, True, False]]


def test_temperature_divides_first_and_zero_is_greedy():
    np.testing.assert_allclose(warper(0.5, 0, 0.0)(LOGITS), LOGITS / 0.5)
    assert (kept(warper(0.0, 0, 0.0)(LOGITS)).sum(-1) == 1).all()
    both = warper(2.0, 5, 0.5)(LOGITS)
    np.testing.assert_array_equal(both, top_p(top_k(LOGITS / 2.0, 5), 0.5))


@pytest.mark.parametrize(
    ("values", "field"),
    [((-1.0, 0, 0.0), "temperature"), ((1.0, -1, 0.0), "top_k"), ((1.0, 0, 1.5), "top_p")],
)
def test_bad_values_are_refused(values, field):
    with pytest.raises(ConfigError, match=f"sample.{field}"):
        warper(*values)
