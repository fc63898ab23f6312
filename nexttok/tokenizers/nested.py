"""Nested dropout: how many tokens of each example are kept (Rippel et al., 2014; FlexTok)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nexttok.config import check
from nexttok.tokens import prefix_lengths

MODES = ("uniform", "pow2", "uniform_pow2")


def validate(mode: str, length: int, where: str) -> None:
    """Raises ConfigError for an unknown mode, or a power-of-two mode on another length."""
    check(mode in MODES, where, mode, " | ".join(MODES))
    power = length & (length - 1) == 0
    check(mode == "uniform" or power, where, mode, f"uniform, as {length} is no power of two")


def sample_keep(key: Array, batch: int, length: int, mode: str) -> Int[Array, "B"]:
    """Number of tokens kept, in 1 .. length.

    uniform: every length alike. pow2: every power of two alike. uniform_pow2: uniform, rounded up
    to a power of two, so P(2^j) = 2^(j-1) / length and half the mass is on the full length.
    """
    if mode == "pow2":
        powers = jnp.asarray(np.asarray(prefix_lengths(length)), jnp.int32)
        return powers[jax.random.randint(key, (batch,), 0, len(powers))]
    keep = jax.random.randint(key, (batch,), 1, length + 1)
    if mode == "uniform":
        return keep
    rounded = jnp.asarray([1 << (k - 1).bit_length() for k in range(1, length + 1)], jnp.int32)
    return rounded[keep - 1]
