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


def multistep(velocity, x, times, stop=None):
    run = jax.jit(lambda x, stop: flow.solve_multistep(velocity, x, times, stop))
    return run(x, jnp.full(len(x), len(times) - 1) if stop is None else stop)


def test_adams_bashforth_is_of_order_two():
    x = jnp.asarray([[1.0], [2.0]])
    exact = np.exp(-1.0) * np.asarray(x)

    def error(steps):
        made = multistep(lambda x, s, i: x, x, np.linspace(1.0, 0.0, steps + 1))
        return np.abs(np.asarray(made) - exact).max()

    assert np.log2(error(16) / error(32)) == pytest.approx(2, abs=0.2)


def test_on_straight_paths_every_stop_is_the_data():
    x, noise = jnp.full((3, 2), 2.0), jnp.full((3, 2), -1.0)
    times = flow.shift_times(np.linspace(1.0, 0.0, 6), 2.0)
    out = multistep(lambda _, s, i: noise - x, noise, times, jnp.asarray([1, 3, 5]))
    np.testing.assert_allclose(out, x, atol=1e-5)
    euler = flow.solve(lambda _, s: noise - x, noise, 5)
    np.testing.assert_allclose(out, euler, atol=1e-5)


def test_a_stop_goes_straight_to_the_data_with_the_slope_of_its_step():
    times = np.asarray([1.0, 0.8, 0.5, 0.0])
    rates = jnp.asarray([1.0, 3.0, -2.0])  # dx/ds of each step, by its number
    x = jnp.zeros((3, 1))
    out = multistep(lambda x, s, i: jnp.full_like(x, rates[i]), x, times, jnp.asarray([1, 2, 3]))
    slopes = [1.0, 1.5 * 3.0 - 0.5, 1.5 * -2.0 - 1.5]
    first, second = -0.2 * slopes[0], -0.2 * slopes[0] - 0.3 * slopes[1]
    expected = [-slopes[0], first - 0.8 * slopes[1], second - 0.5 * slopes[2]]
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-5)


def test_shifted_times_keep_their_ends():
    s = np.linspace(0.0, 1.0, 9)
    moved = flow.shift_times(s, 2.0)
    np.testing.assert_allclose(moved[[0, 8]], [0.0, 1.0])
    np.testing.assert_allclose(1 - moved, (1 - s) / (1 - s + 2 * s))  # of the data's share
    np.testing.assert_allclose(flow.shift_times(s, 1.0), s)


def test_bad_names_are_refused():
    x = jnp.ones((1, 1))
    with pytest.raises(ConfigError, match=r"tokenizer\.solver = 'rk4'"):
        flow.solve(decay, x, 2, "rk4")
    with pytest.raises(ConfigError, match=r"tokenizer\.flow_steps = 0"):
        flow.solve(decay, x, 0)
    with pytest.raises(ConfigError, match=r"tokenizer\.guidance_rule"):
        flow.solve_guided(lambda x, s, n: x, x, 1, "euler", 2.0, "pag")
