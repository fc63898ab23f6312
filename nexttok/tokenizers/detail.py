"""The schedules of DetailFlow (Liu et al., "DetailFlow: 1D Coarse-to-Fine Autoregressive Image
Generation via Next-Detail Prediction", 2025): resolutions of prefixes, and what training draws."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import multiscale
from nexttok.rng import stream


def resolutions(count: int, side: int, power: float) -> Int[np.ndarray, "N"]:
    """Pixels a side that the first 1, 2, ... N tokens draw, from 1 to `side`.

    r(t) = floor(M - (M - 1) ((N - t) / (N - 1))^power), at least 1 and at most M.
    """
    slope = (side - 1) / (count - 1) ** power
    exact = [side - slope * (count - t) ** power for t in range(1, count + 1)]
    return np.clip(np.asarray(exact).astype(np.int64), 1, side)


def drawn_sides(pixels: Int[np.ndarray, "N"], patch: int) -> Int[np.ndarray, "N"]:
    """Sides that a decoder draws for these resolutions: the least multiples of its patch."""
    return -(-pixels // patch) * patch


def degraded(side: int, pixels: int, drawn: int) -> Float[np.ndarray, "d s"]:
    """Shrinks `side` samples to `pixels` by areas and enlarges them to `drawn` by cubic curves."""
    return multiscale.bicubic(drawn, pixels) @ multiscale.area(pixels, side)


def sample_length(key: Array, count: int, group: int, degrade: float) -> Int[Array, ""]:
    """How many tokens a batch is drawn from.

    All N; in a share `degrade` of the batches uniform in 1 .. N - group, made whole groups past the
    first.
    """
    least = jax.random.randint(stream(key, "length"), (), 1, count - group + 1)
    whole = jnp.where(least > group, -(-least // group) * group, least)
    fewer = jax.random.bernoulli(stream(key, "degrade"), degrade)
    return jnp.where(fewer, whole, count)


def sample_window(
    key: Array, count: int, group: int, t: Int[Array, ""] | int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """First disturbed token, and the first after the disturbed ones, when t tokens are drawn.

    In the first group one token; past it a whole group, which is not the last of the t. With t = 1
    nothing is disturbed: both are N.
    """
    t = jnp.asarray(t, jnp.int32)
    i = jax.random.randint(key, (), 0, jnp.where(t <= group, t, t - group))
    start = jnp.where(i < group, i, i // group * group)
    end = start + jnp.where(i < group, 1, group)
    return jnp.where(t == 1, count, start), jnp.where(t == 1, count, end)


def shares(count: int, end: Int[Array, ""] | int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of the bottleneck's losses of N clean tokens, and of those from `end` on, encoded anew."""
    left = jnp.asarray(count - end, jnp.float32)
    return count / (count + left), left / (count + left)
