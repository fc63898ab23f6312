"""Finite scalar quantization (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple").

Each channel is bounded by a shifted tanh and rounded to one of L levels; the id of a position is
the mixed-radix number of its levels, channel 0 fastest. There is no codebook and no auxiliary loss.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build, check


def validate(levels: tuple[int, ...], where: str) -> None:
    """Raises ConfigError unless every level is at least 2 and the ids fit int32."""
    fits = bool(levels) and min(levels) >= 2 and math.prod(levels) < 2**31
    check(fits, where, levels, "levels of at least 2 each with a product below 2^31")


def vocabulary(levels: tuple[int, ...]) -> int:
    """Number of ids, the product of the levels."""
    return math.prod(levels)


def _basis(levels: tuple[int, ...]) -> np.ndarray:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)


def _row(values, like: Array) -> Array:
    """A per-channel constant shaped to broadcast over the leading axes of `like`."""
    return jnp.asarray(values, like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def bound(
    z: Float[Array, "*n C"], levels: tuple[int, ...], printed: bool = False
) -> Float[Array, "*n C"]:
    """tanh(z + s) h - o: maps each channel into its levels, so that rounding hits each of them.

    `printed` takes the paper's appendix to the letter: h is a little short of the outermost levels,
    not beyond them, and s is a tangent, about the inverse of tanh that centres an even range.
    """
    size = np.asarray(levels, np.float64)
    half = (size - 1) * (1 + (-1e-3 if printed else 1e-3)) / 2
    offset = np.where(size % 2 == 0, 0.5, 0.0)
    shift = (np.tan if printed else np.arctanh)(offset / half)
    return jnp.tanh(z + _row(shift, z)) * _row(half, z) - _row(offset, z)


def values_to_ids(values: Float[Array, "*n C"], levels: tuple[int, ...]) -> Int[Array, "*n"]:
    """Ids of quantized values in [-1, 1]."""
    half = np.asarray(levels) // 2
    digits = jnp.round(values * _row(half, values) + _row(half, values)).astype(jnp.int32)
    return (digits * _row(_basis(levels), digits)).sum(-1, dtype=jnp.int32)


def ids_to_values(ids: Int[Array, "*n"], levels: tuple[int, ...]) -> Float[Array, "*n C"]:
    """Quantized values of ids; even levels give -1 .. 1 - 2/L, odd levels -1 .. 1."""
    wide = ids[..., None]
    digits = (wide // _row(_basis(levels), wide)) % _row(levels, wide)
    half = _row(np.asarray(levels) // 2, jnp.zeros((*ids.shape, len(levels)), jnp.float32))
    return (digits.astype(jnp.float32) - half) / half


def quantize(
    z: Float[Array, "*n C"], levels: tuple[int, ...], printed: bool = False
) -> tuple[Float[Array, "*n C"], Int[Array, "*n"], dict]:
    """Rounds z with a straight-through gradient (that of the bounding tanh).

    Args:
      z: encoder output; the last axis has one channel per level.
      levels: number of values of each channel.
      printed: see `bound`.

    Returns:
      z_q float32 in [-1, 1], ids int32, no auxiliary losses ({}).
    """
    bounded = bound(z.astype(jnp.float32), levels, printed)
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    values = rounded / _row(np.asarray(levels) // 2, rounded)
    return values, values_to_ids(jax.lax.stop_gradient(values), levels), {}


@dataclasses.dataclass(frozen=True)
class FSQ(Codes):
    """Rounding without parameters.

    Attributes:
      levels: of each channel.
      printed: see `bound`.
    """

    levels: tuple[int, ...]
    printed: bool
    where: str

    def __post_init__(self):
        validate(self.levels, f"{self.where}.levels")

    @property
    def inputs(self) -> int:
        """One channel per level."""
        return len(self.levels)

    @property
    def channels(self) -> int:
        """As many as go in."""
        return len(self.levels)

    @property
    def vocab(self) -> int:
        """The product of the levels."""
        return vocabulary(self.levels)

    def ids_to_values(self, params: dict, ids: Int[Array, "*n"]) -> Float[Array, "*n C"]:
        """See the function."""
        del params
        return ids_to_values(ids, self.levels)

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the function; rng is not used."""
        del params, rng, train
        values, ids, _ = quantize(z, self.levels, self.printed)
        metrics = {"perplexity": vq.perplexity(ids, self.vocab)}
        return Coded(values, ids, jnp.zeros(()), metrics, {})


def make(section, where: str) -> FSQ:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(FSQ, section, where, named=True)
