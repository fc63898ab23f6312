"""How a codebook is kept without gradients: moving averages, codes drawn anew, k-means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks.search import nearest


def tally(
    z: Float[Array, "M C"], ids: Int[Array, "M"], size: int
) -> tuple[Float[Array, "V"], Float[Array, "V C"]]:
    """How many latents chose each code, and their sums."""
    counts = jnp.zeros(size).at[ids].add(1.0)
    return counts, jnp.zeros((size, z.shape[1])).at[ids].add(z)


def averaged(
    counts: Float[Array, "V"],
    sums: Float[Array, "V C"],
    z: Float[Array, "M C"],
    ids: Int[Array, "M"],
    decay: float,
    eps: float = 1e-5,
) -> tuple[Float[Array, "V"], Float[Array, "V C"], Float[Array, "V C"]]:
    """One step of the codebook's moving averages (van den Oord et al., 2017, appendix A.1).

    n <- g n + (1 - g) count and m <- g m + (1 - g) sum of the latents of each code; the codes are
    m / n', where n' = (n + eps) / (sum n + V eps) sum n keeps unused ones finite.

    Returns:
      counts, sums, codebook.
    """
    count, total = tally(z, ids, len(counts))
    counts = decay * counts + (1 - decay) * count
    sums = decay * sums + (1 - decay) * total
    mass = counts.sum()
    smooth = (counts + eps) / (mass + len(counts) * eps) * mass
    return counts, sums, sums / smooth[:, None]


def drawn(key: Array, z: Float[Array, "M C"], size: int) -> Float[Array, "V C"]:
    """A random latent for each code, a little apart from each other where there are too few."""
    picked = jax.random.randint(jax.random.fold_in(key, 0), (size,), 0, len(z))
    rows = jnp.take(z, picked, axis=0)
    if len(z) >= size:
        return rows
    noise = jax.random.normal(jax.random.fold_in(key, 1), rows.shape)
    return rows + 0.01 * z.shape[1] ** -0.5 * noise


def anchored(
    codebook: Float[Array, "V C"],
    shares: Float[Array, "V"],
    z: Float[Array, "M C"],
    ids: Int[Array, "M"],
    normalize: bool,
    decay: float = 0.99,
) -> tuple[Float[Array, "V C"], Float[Array, "V"]]:
    """Unused codes move to the latents nearest to them (Zheng and Vedaldi, "Online Clustered
    Codebook", 2023, as TA-TiTok has it).

    With moving shares p <- g p + (1 - g) frequency, code k becomes (1 - a) code + a anchor, a =
    exp(-10 V p / (1 - g) - 1e-3), and its anchor is the latent with the least distance to it.

    Returns:
      codebook, shares.
    """
    size = len(codebook)
    frequency = tally(z, ids, size)[0] / len(z)
    shares = decay * shares + (1 - decay) * frequency
    ends = (_unit(codebook), _unit(z)) if normalize else (codebook, z)
    anchors = jnp.take(z, nearest(*ends), axis=0)
    pull = jnp.exp(-10 * size * shares / (1 - decay) - 1e-3)[:, None]
    return (1 - pull) * codebook + pull * anchors, shares


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def kmeans(
    key: Array, z: Float[Array, "M C"], size: int, rounds: int = 10
) -> tuple[Float[Array, "V C"], Int[Array, "M"]]:
    """Lloyd's algorithm from random latents; a cluster that loses all its points keeps its centre.

    Returns:
      Centres, and the index of each latent's.
    """

    def move(centres, _):
        counts, sums = tally(z, nearest(z, centres), size)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        return jnp.where(counts[:, None] > 0, means, centres), None

    centres, _ = jax.lax.scan(move, drawn(key, z, size), None, rounds)
    return centres, nearest(z, centres)
