"""Rectified flow (Liu et al., 2022; Esser et al., "Scaling Rectified Flow Transformers", 2024).

Time runs from s = 1 (noise) to s = 0 (data): x_s = s e + (1 - s) x_0, velocity v = e - x_0.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.config import build, check
from nexttok.heads import guidance
from nexttok.heads.draw import Draw
from nexttok.nn.linear import Linear
from nexttok.rng import stream
from nexttok.tokens import TokenSpec

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


def shift_times(
    times: Float[Array, "*n"] | Float[np.ndarray, "*n"], shift: float
) -> Float[Array, "*n"] | Float[np.ndarray, "*n"]:
    """c s / (1 + (c - 1) s): noise levels moved towards 1 by a shift c > 1 (Esser et al., 2024)."""
    return shift * times / (1.0 + (shift - 1.0) * times)


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


def solve_multistep(
    velocity: Callable[[Array, Array, Array], Array],
    noise: Float[Array, "B *s"],
    times: Float[np.ndarray, "K1"],
    stop: Int[Array, "B"] | None = None,
) -> Float[Array, "B *s"]:
    """Integrates dx/ds from times[0] = 1 to times[K] = 0 with one call per step, or less of it.

    The first step is Euler's, later ones are Adams-Bashforth's of order 2 with the coefficients of
    equal steps, 1.5 v_i - 0.5 v_{i-1}, whatever the steps are.

    Args:
      velocity: (x [B, ...], s [B], number of the step []) -> [B, ...].
      noise: x at s = 1.
      times: noise levels, falling.
      stop: the step of each example, 1 .. K, that leads straight to s = 0: its estimate of the data
        from the steps so far; None for K.
    """
    count = len(times) - 1
    stop = jnp.full(len(noise), count, jnp.int32) if stop is None else stop
    stop = stop.reshape(-1, *(1,) * (noise.ndim - 1))

    def step(carry, row):
        x, before, estimate = carry
        i, now, after = row
        v = velocity(x, jnp.full(len(x), now), i)
        slope = jnp.where(i == 0, v, 1.5 * v - 0.5 * before)
        estimate = jnp.where(i < stop, x - now * slope, estimate)
        return (x - (now - after) * slope, v, estimate), None

    grid = jnp.asarray(times, jnp.float32)
    rows = (jnp.arange(count, dtype=jnp.int32), grid[:-1], grid[1:])
    return jax.lax.scan(step, (noise, jnp.zeros_like(noise), noise), rows)[0][2]


def reverse_times(steps: int, last: float = 0.04) -> Float[np.ndarray, "T"]:
    """Times of xAR's reverse SDE: linspace(1, last, steps), then 0."""
    return np.append(np.linspace(1.0, last, steps), 0.0).astype(np.float32)


def reverse_drift(
    velocity: Float[Array, "B *s"], x: Float[Array, "B *s"], now: Float[Array, ""]
) -> Float[Array, "B *s"]:
    """v - s * score of the linear path, where score = -(x + (1 - s) v) / s."""
    return velocity + x + (1.0 - now) * velocity


class Velocity(nn.Module):
    """Linear map of hidden states to velocities."""

    channels: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S C"]:
        return Linear(self.channels, name="velocity")(hidden).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Flow:
    """`config.generator.head` of name flow: the whole network is the velocity (context noise).

    Attributes:
      channels, hidden: of the tokens, of the hidden states.
      steps: solver steps per entity.
      solver: sde (Euler-Maruyama with diffusion 2 s; the last interval has no noise) | euler.
    """

    channels: int
    hidden: int
    steps: int
    solver: str
    reads = ()

    def __post_init__(self):
        allowed = "categorical, as these tokens are discrete"
        check(self.channels > 0, "generator.head.name", "flow", allowed)
        solvers = ("sde", "euler")
        check(self.solver in solvers, "generator.head.solver", self.solver, " | ".join(solvers))
        check(self.steps >= 2, "generator.head.steps", self.steps, "at least 2")

    def init_params(self, rng: Array) -> dict:
        """Parameters of the output layer."""
        return Velocity(self.channels).init(rng, jnp.zeros((1, 1, self.hidden)))["params"]

    def velocity(self, params: dict, hidden: Float[Array, "B S D"]) -> Float[Array, "B S C"]:
        """e - x_0, predicted."""
        return Velocity(self.channels).apply({"params": params}, hidden)

    def integrate(
        self,
        first: Float[Array, "B S C"],
        velocity: Callable[[Array, Array], Array],
        noise: Float[Array, "B S C"],
        rng: Array,
        draw: Draw,
    ) -> Float[Array, "B S C"]:
        """From noise at s = 1 to a token at s = 0, one network call a step.

        Args:
          first: velocity at s = 1, which the caller has computed.
          velocity: (x, s []) -> velocity.
          noise: x at s = 1.
          rng: key of the SDE's fresh noise.
          draw: tells the number of steps.
        """
        even = self.solver == "euler"

        def grid(steps):
            times = np.linspace(1.0, 0.0, steps + 1) if even else reverse_times(steps)
            return {"times": times.astype(np.float32)}

        table, steps = draw.tables(self.steps, grid)
        times = table["times"]

        def move(x, v, index, now, after):
            if even:
                return x + v * (after - now)
            fresh = jax.random.normal(stream(rng, "solver", index), x.shape)
            spread = jnp.where(after > 0, jnp.sqrt(2.0 * now * (now - after)), 0.0)
            return x + reverse_drift(v, x, now) * (after - now) + spread * fresh

        def step(i, x):
            i = jnp.asarray(i, jnp.int32)
            now, after = times[i], times[i + 1]
            return move(x, velocity(x, now), i, now, after)

        return jax.lax.fori_loop(1, steps, step, move(noise, first, 0, times[0], times[1]))

    def loss(
        self,
        params: dict,
        hidden: Float[Array, "B S D"],
        target: Float[Array, "B S C"],
        rng: Array,
        train: bool,
    ) -> tuple[Float[Array, "B S"], dict]:
        """Mean squared error per token to the true velocity `target`."""
        del rng, train
        return jnp.square(self.velocity(params, hidden) - target).mean(-1), {}


def make(section, spec: TokenSpec, width: int) -> Flow:
    """The head of a config section.

    Raises:
      ConfigError: a bad option, or discrete tokens.
    """
    channels = 0 if spec.vocab else spec.channels
    return build(Flow, section, "generator.head", named=True, channels=channels, hidden=width)
