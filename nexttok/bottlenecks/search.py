"""The nearest of many codes, without a table of all distances."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.mesh import batch_ways

ROWS, CODES = 1024, 4096  # of a device's block of distances, 16 MiB


def parts(z: Float[Array, "M C"], rows: int) -> Float[Array, "P R C"]:
    """Rows in parts, of at most `rows` on each device; the last rows of some parts are zeros.

    Neighbours go to different parts, so that every part has rows of every device and a loop over
    parts moves none.
    """
    count = -(-len(z) // (rows * batch_ways()))
    padded = jnp.pad(z, ((0, -len(z) % count), (0, 0)))
    return padded.reshape(-1, count, z.shape[1]).swapaxes(0, 1)


def nearest(z: Float[Array, "M C"], codebook: Float[Array, "V C"]) -> Int[Array, "M"]:
    """Index of the nearest row in squared distance; the first wins ties. float32 throughout.

    Distances are taken in blocks, so that memory grows with M + V and not with M V.
    """
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    if len(z) * len(codebook) <= ROWS * CODES * batch_ways():
        return jnp.argmin(_scores(z, codebook), -1).astype(jnp.int32)
    codes = min(CODES, len(codebook))
    lacking = -len(codebook) % codes
    blocks = jnp.pad(codebook, ((0, lacking), (0, 0))).reshape(-1, codes, codebook.shape[1])
    # a padded code is further away than any other
    norms = jnp.square(codebook).sum(-1)
    norms = jnp.pad(norms, (0, lacking), constant_values=jnp.inf).reshape(-1, codes)
    starts = jnp.arange(len(blocks), dtype=jnp.int32) * codes

    def search(part):
        def look(best, block):
            value, index = best
            scores = _scores(part, block[0], block[1])
            found = jnp.argmin(scores, -1).astype(jnp.int32)
            score = jnp.take_along_axis(scores, found[:, None], 1)[:, 0]
            nearer = score < value
            return (
                jnp.where(nearer, score, value),
                jnp.where(nearer, found + block[2], index),
            ), None

        first = (jnp.full(len(part), jnp.inf), jnp.zeros(len(part), jnp.int32))
        return jax.lax.scan(look, first, (blocks, norms, starts))[0][1]

    return jax.lax.map(search, parts(z, ROWS)).T.reshape(-1)[: len(z)]


def among_nearest(
    key: Array, z: Float[Array, "M C"], codebook: Float[Array, "V C"], count: int
) -> Int[Array, "M"]:
    """Index of a row drawn uniformly from the `count` nearest."""
    scores = _scores(z.astype(jnp.float32), codebook.astype(jnp.float32))
    rows = jax.lax.top_k(-scores, count)[1].astype(jnp.int32)
    drawn = jax.random.randint(key, (len(z), 1), 0, count)
    return jnp.take_along_axis(rows, drawn, 1)[:, 0]


def _scores(z, codebook, norms=None):
    """Squared distances less |z|^2."""
    norms = jnp.square(codebook).sum(-1) if norms is None else norms
    return norms[None, :] - 2.0 * jnp.matmul(z, codebook.T, precision="highest")
