"""Logit transforms: temperature and truncations, none of which sorts a vocabulary."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from nexttok.config import check

SIGN = np.uint32(1 << 31)


def top_k(logits: Float[Array, "*n V"], k: int) -> Float[Array, "*n V"]:
    """Keeps the k largest logits; ties with the k-th survive."""
    kth = logits.max(-1, keepdims=True) if k == 1 else kth_largest(logits, k)
    return jnp.where(logits < kth, -jnp.inf, logits)


def kth_largest(x: Float[Array, "*n V"], k: int | Int[Array, "*n 1"]) -> Float[Array, "*n 1"]:
    """The k-th largest value, ties counted, exact in float32; k may differ from row to row."""
    found = _last_that_keeps(_ordered(x), jnp.ones((), jnp.int32), k, 32)
    bits = jnp.where(found >= SIGN, found ^ SIGN, ~found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


def _ordered(x):
    """Floats as unsigned integers of the same order: the sign bit is flipped, of negative numbers
    all bits are."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >= SIGN, ~bits, bits | SIGN)


def top_p(logits: Float[Array, "*n V"], p: float) -> Float[Array, "*n V"]:
    """Nucleus truncation (Holtzman et al., 2020): the smallest set of likely tokens of mass >= p.

    Tokens tied at the boundary survive together.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    bits = jax.lax.bitcast_convert_type(probs, jnp.uint32)
    least = _last_that_keeps(bits, probs, p, 30)  # the first two bits of 0 .. 1 are 0
    return jnp.where((bits >= least) | (probs >= probs.max(-1, keepdims=True)), logits, -jnp.inf)


def typical(logits: Float[Array, "*n V"], mass: float) -> Float[Array, "*n V"]:
    """Locally typical sampling (Meister et al., 2023): of the tokens whose surprise is nearest to
    the entropy, the smallest set of so much mass. Tokens tied at the boundary survive together."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    surprise = jnp.where(probs > 0, -log_probs, 0.0)
    entropy = (probs * surprise).sum(-1, keepdims=True)
    near = _ordered(jnp.where(probs > 0, -jnp.abs(surprise - entropy), -jnp.inf))
    least = _last_that_keeps(near, probs, mass, 32)
    # rounding can leave less than the mass in all tokens together: then none is cut
    return jnp.where((near >= least) & (probs > 0), logits, -jnp.inf)


def entropy_top_k(
    logits: Float[Array, "*n V"], least: int = 1, most: int = 2000
) -> Float[Array, "*n V"]:
    """Top-k where k follows the entropy H in nats: least + (most - least) sigmoid(min(H, 10) - 5),
    rounded, so that flat regions are drawn almost greedily and textures freely (PURE: Wei et al.,
    "Perceive, Understand and Restore", 2025; there H is the mean of a batch, here each slot's own).
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    entropy = jnp.where(probs > 0, -probs * log_probs, 0.0).sum(-1, keepdims=True)
    share = jax.nn.sigmoid(jnp.clip(entropy, 0.0, 10.0) - 5.0)
    k = jnp.round(least + (most - least) * share).astype(jnp.int32)
    k = jnp.clip(k, 1, logits.shape[-1])
    return jnp.where(logits < kth_largest(logits, k), -jnp.inf, logits)


def _last_that_keeps(
    values: UInt32[Array, "*n V"], weights: Array, least: float | Array, bits: int
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


def warper(
    temperature: float, k: int, p: float, typical_mass: float = 0.0, entropy_k: tuple[int, ...] = ()
) -> Callable[[Array], Array]:
    """Temperature, then top-k, top-k by entropy, top-p, typical.

    Args:
      temperature: above 0; 0 means greedy.
      k: kept logits; 0 for all.
      p: kept mass; 0 or 1 for all.
      typical_mass: kept mass of typical tokens; 0 or 1 for all.
      entropy_k: kept logits at no and at much entropy; () for all.

    Raises:
      ConfigError: a value out of range.
    """
    check(temperature >= 0, "sample.temperature", temperature, "at least 0")
    check(k >= 0, "sample.top_k", k, "at least 0 (0 for all)")
    check(0 <= p <= 1, "sample.top_p", p, "0 .. 1 (0 for all)")
    check(0 <= typical_mass <= 1, "sample.typical", typical_mass, "0 .. 1 (0 for all)")
    two = (
        len(entropy_k) in (0, 2)
        and list(entropy_k) == sorted(entropy_k)
        and min((1, *entropy_k)) >= 1
    )
    check(two, "sample.entropy_top_k", entropy_k, "two rising numbers of 1 or more, () for all")

    def warp(logits: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
        if temperature == 0:
            return top_k(logits, 1)
        logits = logits / temperature
        if 0 < k < logits.shape[-1]:
            logits = top_k(logits, k)
        if entropy_k:
            logits = entropy_top_k(logits, *entropy_k)
        if 0 < p < 1:
            logits = top_p(logits, p)
        return typical(logits, typical_mass) if 0 < typical_mass < 1 else logits

    return warp
