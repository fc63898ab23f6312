"""Rectified flow against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.heads import flow, guidance


def decay(x, s):
    """dx/ds = x: the solution at s = 0 is exp(-1) x(1)."""
    return x


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_at_their_order(solver, order):
    x = jnp.asarray([[1.0], [2.0]])
    exact = np.exp(-1.0) * np.asarray(x)

    def error(steps):
        return np.abs(np.asarray(flow.solve(decay, x, steps, solver)) - exact).max()

    rate = np.log2(error(8) / error(16))
    assert rate == pytest.approx(order, abs=0.15)


def test_straight_paths_need_one_step():
    x, noise = jnp.full((1, 3), 2.0), jnp.full((1, 3), -1.0)
    out = flow.solve(lambda _, s: noise - x, noise, 1)
    np.testing.assert_allclose(out, x)


def test_gaussian_data_is_recovered_by_the_exact_velocity():
    mean, std = 3.0, 0.5

    def velocity(x, s):
        t = s[:, None]
        variance = t**2 + (1 - t) ** 2 * std**2
        residual = x - (1 - t) * mean
        noise = t / variance * residual
        data = mean + (1 - t) * std**2 / variance * residual
        return noise - data

    noise = jax.random.normal(jax.random.key(0), (20000, 1))
    out = flow.solve(velocity, noise, 50, "heun")
    assert float(out.mean()) == pytest.approx(mean, abs=0.02)
    assert float(out.std()) == pytest.approx(std, abs=0.02)


def test_loss_and_interpolation():
    x, noise = jnp.zeros((2, 4)), jnp.ones((2, 4))
    mixed = flow.interpolate(x, noise, jnp.asarray([0.25, 1.0]))
    np.testing.assert_allclose(mixed[:, 0], [0.25, 1.0])
    np.testing.assert_allclose(flow.loss(jnp.zeros((2, 4)), x, noise), [1.0, 1.0])


def test_time_schedules():
    key = jax.random.key(0)
    uniform = flow.sample_times(key, 50000, "uniform")
    mode = flow.sample_times(key, 50000, "mode", 0.25)
    u = jax.random.uniform(key, (50000,))
    np.testing.assert_allclose(mode, 1 - u - 0.25 * (np.cos(np.pi * u / 2) ** 2 - 1 + u), atol=1e-6)
    normal = flow.sample_times(key, 50000, "logit_normal")
    for times in (uniform, mode, normal):
        assert float(times.min()) >= 0.0
        assert float(times.max()) <= 1.0
    assert float(normal.std()) < float(uniform.std())
    with pytest.raises(ConfigError, match="logit_normal"):
        flow.sample_times(key, 1, "cosine")


def test_guidance_of_one_is_the_conditional_pass_and_calls_nothing_else():
    seen = []

    def velocity(x, s, null):
        seen.append(null)
        return x

    out = flow.solve_guided(velocity, jnp.ones((1, 2)), 4, "euler", 1.0, "cfg")
    assert not any(seen)
    np.testing.assert_allclose(out, flow.solve(decay, jnp.ones((1, 2)), 4))


def test_apg_without_its_three_changes_is_cfg():
    c, u = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    got, _ = guidance.apg(c, u, 3.0, jnp.zeros_like(c), momentum=0.0, threshold=0.0, eta=1.0)
    np.testing.assert_allclose(got, guidance.cfg(c, u, 3.0), rtol=1e-4, atol=1e-5)


def test_apg_matches_its_definition():
    c, u, m = np.asarray(jax.random.normal(jax.random.key(2), (3, 2, 5, 5, 1)), np.float64)
    got, average = guidance.apg(
        *(jnp.asarray(a, jnp.float32) for a in (c, u)), 4.0, jnp.asarray(m, jnp.float32)
    )
    for i in range(2):
        diff = c[i] - u[i] - 0.5 * m[i]
        np.testing.assert_allclose(average[i], diff, rtol=1e-5, atol=1e-5)
        diff = diff * min(1.0, 2.5 / np.linalg.norm(diff))
        unit = c[i] / np.linalg.norm(c[i])
        expected = c[i] + 3.0 * (diff - (diff * unit).sum() * unit)
        np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-5)


def test_bad_names_are_refused():
    x = jnp.ones((1, 1))
    with pytest.raises(ConfigError, match=r"tokenizer\.solver = 'rk4'"):
        flow.solve(decay, x, 2, "rk4")
    with pytest.raises(ConfigError, match=r"tokenizer\.flow_steps = 0"):
        flow.solve(decay, x, 0)
    with pytest.raises(ConfigError, match=r"tokenizer\.guidance_rule"):
        flow.solve_guided(lambda x, s, n: x, x, 1, "euler", 2.0, "pag")
