"""Logit transforms: temperature, top-k and top-p, none of which sorts a vocabulary."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check

BISECTIONS = 40  # halvings of the probability threshold: below float32 resolution


def top_k(logits: Float[Array, "*n V"], k: int) -> Float[Array, "*n V"]:
    """Keeps the k largest logits; ties with the k-th survive."""
    kth = logits.max(-1, keepdims=True) if k == 1 else kth_largest(logits, k)
    return jnp.where(logits < kth, -jnp.inf, logits)


def kth_largest(x: Float[Array, "*n V"], k: int) -> Float[Array, "*n 1"]:
    """The k-th largest value, ties counted, exact in float32.

    Its bits are found from the first to the last, each by one count: read as unsigned integers,
    with the sign bit flipped (all bits, of negative numbers), floats keep their order.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)

    def next_bit(i, found):
        larger = found | (sign >> i.astype(jnp.uint32))
        enough = (ordered >= larger).sum(-1, keepdims=True) >= k
        return jnp.where(enough, larger, found)

    found = jnp.zeros((*x.shape[:-1], 1), jnp.uint32)
    found = jax.lax.fori_loop(0, 32, next_bit, found)
    bits = jnp.where(found >= sign, found ^ sign, ~found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


def top_p(logits: Float[Array, "*n V"], p: float) -> Float[Array, "*n V"]:
    """Nucleus truncation (Holtzman et al., 2020): the smallest set of likely tokens of mass >= p.

    The set is {q >= t} for the largest t whose mass reaches p; t is found by bisection, which costs
    a few passes where a sort would cost many. Tokens tied at the boundary survive together.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = probs.max(-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(top), top))
    return jnp.where((probs >= low) | (probs >= top), logits, -jnp.inf)


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
