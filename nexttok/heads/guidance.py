"""Mixing a conditional and an unconditional prediction.

Form A throughout: u + s (c - u), so s = 1 is no guidance.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cfg(
    cond: Float[Array, "*s"], uncond: Float[Array, "*s"], scale: float | Float[Array, "..."]
) -> Float[Array, "*s"]:
    """Classifier-free guidance (Ho and Salimans, 2022), of one scale or of one that broadcasts."""
    return uncond + scale * (cond - uncond)


def apg(
    cond: Float[Array, "B *s"],
    uncond: Float[Array, "B *s"],
    scale: float | Float[Array, ""],
    average: Float[Array, "B *s"],
    momentum: float = -0.5,
    threshold: float = 2.5,
    eta: float = 0.0,
) -> tuple[Float[Array, "B *s"], Float[Array, "B *s"]]:
    """Adaptive projected guidance (Sadat et al., "Eliminating Oversaturation and Artifacts of High
    Guidance Scales in Diffusion Models", 2024).

    Args:
      cond, uncond: predictions of one step.
      scale: guidance; 1 is none.
      average: running difference of the earlier steps, zeros at the first.
      momentum: weight of `average` in the new difference (negative: it is pushed away from it).
      threshold: largest norm of one example's difference; 0 for no limit.
      eta: share of the component parallel to `cond` that is kept.

    Returns:
      Guided prediction, new `average`.
    """
    axes = tuple(range(1, cond.ndim))
    average = cond - uncond + momentum * average
    diff = average
    if threshold > 0:
        norm = jnp.sqrt(jnp.square(diff).sum(axes, keepdims=True))
        diff = diff * jnp.minimum(1.0, threshold / jnp.maximum(norm, 1e-12))
    unit = cond * jax.lax.rsqrt(jnp.maximum(jnp.square(cond).sum(axes, keepdims=True), 1e-24))
    parallel = (diff * unit).sum(axes, keepdims=True) * unit
    return cond + (scale - 1.0) * (diff - parallel + eta * parallel), average
