"""Rectified flow (Liu et al., 2022; Esser et al., "Scaling Rectified Flow Transformers", 2024).

Time runs from s = 1 (noise) to s = 0 (data): x_s = s e + (1 - s) x_0, velocity v = e - x_0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.heads import guidance

NOISE_SCHEDULES = ("uniform", "mode", "logit_normal")
SOLVERS = ("euler", "heun")
GUIDANCE_RULES = ("cfg", "apg")


def sample_times(
    key: Array, count: int, schedule: str, mode_scale: float = 0.25
) -> Float[Array, "B"]:
    """Training noise levels in [0, 1].

    Args:
      key: random key.
      count: how many, B.
      schedule: uniform; mode (s = 1 - u - m (cos^2(pi u / 2) - 1 + u)); logit_normal
        (sigmoid of N(0, 1)).
      mode_scale: m of the mode schedule.

    Raises:
      ConfigError: unknown schedule.
    """
    check(schedule in NOISE_SCHEDULES, "tokenizer.noise", schedule, " | ".join(NOISE_SCHEDULES))
    if schedule == "logit_normal":
        return jax.nn.sigmoid(jax.random.normal(key, (count,)))
    u = jax.random.uniform(key, (count,))
    if schedule == "uniform":
        return u
    return 1.0 - u - mode_scale * (jnp.cos(jnp.pi * u / 2) ** 2 - 1.0 + u)


def interpolate(
    x: Float[Array, "B *s"], noise: Float[Array, "B *s"], times: Float[Array, "B"]
) -> Float[Array, "B *s"]:
    """x_s = s e + (1 - s) x_0."""
    s = times.reshape(-1, *(1,) * (x.ndim - 1))
    return s * noise + (1.0 - s) * x


def loss(
    velocity: Float[Array, "B *s"], x: Float[Array, "B *s"], noise: Float[Array, "B *s"]
) -> Float[Array, "B"]:
    """Mean squared error to e - x_0, per example."""
    return jnp.square(velocity - (noise - x)).mean(tuple(range(1, x.ndim)))


def solve(
    velocity: Callable[[Array, Array], Array],
    noise: Float[Array, "B *s"],
    steps: int,
    solver: str = "euler",
) -> Float[Array, "B *s"]:
    """Integrates dx/ds = velocity(x, s) from s = 1 to s = 0 in equal steps.

    Args:
      velocity: (x [B, ...], s [B]) -> [B, ...].
      noise: x at s = 1.
      steps: number of equal steps.
      solver: euler (one call per step) or heun (two).

    Raises:
      ConfigError: unknown solver or steps < 1.
    """

    def stateless(x, s, state):
        return velocity(x, s), state

    return _integrate(stateless, noise, jnp.zeros(()), steps, solver)


def solve_guided(
    velocity: Callable[[Array, Array, bool], Array],
    noise: Float[Array, "B *s"],
    steps: int,
    solver: str,
    scale: float,
    rule: str,
) -> Float[Array, "B *s"]:
    """As `solve`, each velocity guided.

    Args:
      velocity: (x, s, null) -> [B, ...]; null = True drops the condition.
      scale: guidance; 1 makes no unconditional call at all.
      rule: cfg | apg (see heads/guidance.py).

    Raises:
      ConfigError: unknown rule, solver, or steps < 1.
    """
    check(rule in GUIDANCE_RULES, "tokenizer.guidance_rule", rule, " | ".join(GUIDANCE_RULES))
    if scale == 1.0:
        return solve(lambda x, s: velocity(x, s, False), noise, steps, solver)

    def guided(x, s, average):
        cond, uncond = velocity(x, s, False), velocity(x, s, True)
        if rule == "cfg":
            return guidance.cfg(cond, uncond, scale), average
        return guidance.apg(cond, uncond, scale, average)

    return _integrate(guided, noise, jnp.zeros_like(noise), steps, solver)


def _integrate(field, x, state, steps, solver):
    check(steps >= 1, "tokenizer.flow_steps", steps, "at least 1")
    check(solver in SOLVERS, "tokenizer.solver", solver, " | ".join(SOLVERS))

    def step(carry, i):
        x, state = carry
        now = jnp.full((x.shape[0],), i / steps, jnp.float32)
        v, state = field(x, now, state)
        if solver == "heun":
            ahead, _ = field(x - v / steps, now - 1.0 / steps, state)
            v = 0.5 * (v + ahead)
        return (x - v / steps, state), None

    times = jnp.arange(steps, 0, -1, dtype=jnp.float32)
    return jax.lax.scan(step, (x, state), times)[0][0]
