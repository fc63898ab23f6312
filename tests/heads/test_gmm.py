"""Gaussian mixtures: their density, the zero start, and density-based guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nexttok.heads import gmm


def test_log_prob_is_the_mixture_of_products():
    params = jax.random.normal(jax.random.key(0), (3, 2 + 2 * 2 * 3))
    x = jax.random.normal(jax.random.key(1), (3, 3))
    parts = gmm.split(params, 3)
    logits, loc, scale = (np.asarray(v) for v in parts)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = scipy.stats.norm.pdf(np.asarray(x)[:, None], loc, scale).prod(-1)
    expected = np.log((weights * each).sum(-1))
    np.testing.assert_allclose(gmm.log_prob(*parts, x), expected, rtol=1e-5)


def test_a_zero_head_is_a_standard_normal():
    logits, loc, scale = gmm.split(jnp.zeros((1, 4 * 7)), 3)
    x = jnp.asarray([[0.3, -1.0, 2.0]])
    expected = scipy.stats.norm.logpdf(np.asarray(x)).sum(-1)
    np.testing.assert_allclose(gmm.log_prob(logits, loc, scale, x), expected, rtol=1e-5)
    np.testing.assert_allclose(gmm.squareplus(jnp.asarray([0.0]), halved=False), [1.0])


@pytest.mark.parametrize("w", [0.0, 0.4])
def test_guided_gaussians_follow_the_tilted_density(w):
    """(1 + w) precisions of c minus w of u, and the mean that they weigh."""
    count = 20000
    cond = (jnp.full((count, 1), 1.0), jnp.full((count, 1), 0.8))
    uncond = (jnp.full((count, 1), 0.2), jnp.full((count, 1), 1.1))
    x = np.asarray(jax.jit(gmm.rejection_sample)(jax.random.key(0), cond, uncond, jnp.asarray(w)))
    precision = (1 + w) / 0.8**2 - w / 1.1**2
    mean = ((1 + w) * 1.0 / 0.8**2 - w * 0.2 / 1.1**2) / precision
    # Kolmogorov-Smirnov at 20,000 draws: 1.63 / sqrt(n) is the 1 % level
    distance = scipy.stats.kstest(x[:, 0], "norm", (mean, precision**-0.5)).statistic
    assert distance < 1.63 / np.sqrt(count)


def test_equal_densities_need_no_guidance():
    pair = (jnp.zeros((5, 2)), jnp.ones((5, 2)))
    x = jax.random.normal(jax.random.key(3), (5, 2))
    np.testing.assert_allclose(
        gmm.guided_log_prob(x, pair, pair, jnp.asarray(3.0)),
        gmm.normal_log_prob(x, *pair),
        rtol=1e-5,
    )
