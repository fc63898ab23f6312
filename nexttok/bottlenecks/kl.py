"""Diagonal Gaussian posterior (Kingma and Welling, "Auto-Encoding Variational Bayes")."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def quantize(
    moments: Float[Array, "*n C2"], rng: Array | None
) -> tuple[Float[Array, "*n C"], None, dict]:
    """Samples the posterior whose mean and log variance are the two halves of `moments`.

    Args:
      moments: [..., 2C]; the log variance is clipped to [-30, 20].
      rng: noise key, or None for the mode.

    Returns:
      z [..., C], no codes, {"kl": [B], KL to N(0, 1) in nats, mean over the
      elements of an example}.
    """
    mean, log_var = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    log_var = jnp.clip(log_var, -30.0, 20.0)
    z = mean
    if rng is not None:
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(rng, mean.shape)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - 1.0 - log_var)
    return z, None, {"kl": kl.mean(tuple(range(1, kl.ndim)))}
