"""Vector quantization (van den Oord et al., "Neural Discrete Representation Learning").

The codebook is a parameter trained by the codebook loss; with `normalize` distances and values use
unit vectors (Yu et al., ViT-VQGAN).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def init_codebook(key: Array, size: int, channels: int) -> Float[Array, "V C"]:
    """Uniform in [-1/V, 1/V], the VQ-VAE initialization."""
    return jax.random.uniform(key, (size, channels), minval=-1.0 / size, maxval=1.0 / size)


def unit(x: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """x / |x| over the last axis, guarded at 1e-12."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest(z: Float[Array, "M C"], codebook: Float[Array, "V C"]) -> Int[Array, "M"]:
    """Index of the nearest row in squared distance; the first wins ties. float32 throughout."""
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    scores = jnp.square(codebook).sum(-1)[None, :] - 2.0 * jnp.matmul(
        z, codebook.T, precision="highest"
    )
    return jnp.argmin(scores, -1).astype(jnp.int32)


def ids_to_values(
    ids: Int[Array, "*n"], codebook: Float[Array, "V C"], normalize: bool = False
) -> Float[Array, "*n C"]:
    """Codebook rows of ids, of unit length when `normalize`."""
    return jnp.take(unit(codebook) if normalize else codebook, ids, axis=0)


def quantize(
    z: Float[Array, "*n C"],
    codebook: Float[Array, "V C"],
    normalize: bool = False,
    beta: float = 0.25,
) -> tuple[Float[Array, "*n C"], Int[Array, "*n"], dict]:
    """Nearest codebook row with a straight-through gradient.

    Args:
      z: encoder output.
      codebook: V rows.
      normalize: work on unit vectors.
      beta: weight of the commitment loss; the codebook loss has weight 1.

    Returns:
      z_q, ids int32, {"codebook": mean|sg z - e|^2, "commitment": beta mean|z - sg e|^2}; means
      run over every element, channels included.
    """
    z = z.astype(jnp.float32)
    if normalize:
        z = unit(z)
    rows = unit(codebook) if normalize else codebook
    ids = nearest(z.reshape(-1, z.shape[-1]), rows).reshape(z.shape[:-1])
    code = jnp.take(rows, ids, axis=0)
    stop = jax.lax.stop_gradient
    aux = {
        "codebook": jnp.square(stop(z) - code).mean(),
        "commitment": beta * jnp.square(z - stop(code)).mean(),
    }
    return z + stop(code - z), ids, aux


def entropy(
    z: Float[Array, "*n C"],
    codebook: Float[Array, "V C"],
    normalize: bool = False,
    temperature: float = 0.01,
) -> Float[Array, ""]:
    """Mean entropy of the soft assignments minus the entropy of their mean, in nats.

    Low when every position is sure of its code and all codes are used alike (Yu et al., "Language
    Model Beats Diffusion", 2023); assignments are softmax(-distance^2 / temperature).
    """
    z, rows = z.astype(jnp.float32).reshape(-1, z.shape[-1]), codebook.astype(jnp.float32)
    if normalize:
        z, rows = unit(z), unit(rows)
    norms = jnp.square(z).sum(-1)[:, None] + jnp.square(rows).sum(-1)[None]
    log_p = jax.nn.log_softmax((2.0 * z @ rows.T - norms) / temperature)
    mean = jnp.exp(log_p).mean(0)
    return (mean * jnp.log(mean + 1e-5)).sum() - (jnp.exp(log_p) * log_p).sum(-1).mean()


def perplexity(ids: Int[Array, "*n"], size: int) -> Float[Array, ""]:
    """exp of the entropy of the codes' shares: `size` when all are used alike, 1 for one code."""
    share = jnp.zeros(size).at[ids.ravel()].add(1.0 / ids.size)
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())
