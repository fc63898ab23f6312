"""Gumbel scores, whose order is a draw without replacement."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conditioned(
    total: Float[Array, "B K V"], perturbed: Float[Array, "B K"], key: Array
) -> Float[Array, "B K V"]:
    """Gumbel scores of continuations whose maximum per beam is the beam's own score."""
    raw = total + jax.random.gumbel(key, total.shape)
    top = raw.max(-1, keepdims=True)
    parent = perturbed[..., None]
    # log(1 - exp(raw - top)), -inf at the maximum itself
    gap = jnp.where(raw < top, raw - top, -jnp.inf)
    rest = jnp.log1p(-jnp.exp(gap))
    v = parent - raw + rest
    scores = parent - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
    scores = jnp.where(raw < top, scores, parent)
    dead = ~jnp.isfinite(total) | ~jnp.isfinite(parent)
    return jnp.where(dead, -jnp.inf, scores)
