"""Logit transforms: temperature, top-k and top-p, none of which sorts a vocabulary."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from nexttok.config import check


def top_k(logits: Float[Array, "*n V"], k: int) -> Float[Array, "*n V"]:
    """Keeps the k largest logits; ties with the k-th survive."""
    kth = logits.max(-1, keepdims=True) if k == 1 else kth_largest(logits, k)
    return jnp.where(logits < kth, -jnp.inf, logits)


def kth_largest(x: Float[Array, "*n V"], k: int) -> Float[Array, "*n 1"]:
    """The k-th largest value, ties counted, exact in float32.

    Read as unsigned integers, with the sign bit flipped (all bits, of negative numbers), floats
    keep their order.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    found = _last_that_keeps(ordered, jnp.ones((), jnp.int32), k, 32)
    bits = jnp.where(found >= sign, found ^ sign, ~found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


def top_p(logits: Float[Array, "*n V"], p: float) -> Float[Array, "*n V"]:
    """Nucleus truncation (Holtzman et al., 2020): the smallest set of likely tokens of mass >= p.

    Tokens tied at the boundary survive together.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    bits = jax.lax.bitcast_convert_type(probs, jnp.uint32)
    least = _last_that_keeps(bits, probs, p, 30)  # the first two bits of 0 .. 1 are 0
    return jnp.where((bits >= least) | (probs >= probs.max(-1, keepdims=True)), logits, -jnp.inf)


def _last_that_keeps(
    values: UInt32[Array, "*n V"], weights: Array, least: float, bits: int
) -> UInt32[Array, "*n 1"]:
    """The largest t whose {values >= t} weighs at least `least`; 0 where nothing does.

    Its bits, of which the last `bits` can be 1, are found from the first to the last, each by one
    pass over the values, where a sort would cost many.
    """

    def next_bit(i, found):
        larger = found | jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32)
        kept = jnp.where(values >= larger, weights, jnp.zeros_like(weights))
        return jnp.where(kept.sum(-1, keepdims=True) >= least, larger, found)

    found = jnp.zeros((*values.shape[:-1], 1), jnp.uint32)
    return jax.lax.fori_loop(0, bits, next_bit, found)


def warper(temperature: float, k: int, p: float) -> Callable[[Array], Array]:
    """Temperature, then top-k, then top-p.

    Args:
      temperature: above 0; 0 means greedy.
      k: kept logits; 0 for all.
      p: kept mass; 0 or 1 for all.

    Raises:
      ConfigError: a value out of range.
    """
    check(temperature >= 0, "sample.temperature", temperature, "at least 0")
    check(k >= 0, "sample.top_k", k, "at least 0 (0 for all)")
    check(0 <= p <= 1, "sample.top_p", p, "0 .. 1 (0 for all)")

    def warp(logits: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
        if temperature == 0:
            return top_k(logits, 1)
        logits = logits / temperature
        if 0 < k < logits.shape[-1]:
            logits = top_k(logits, k)
        return top_p(logits, p) if 0 < p < 1 else logits

    return warp
