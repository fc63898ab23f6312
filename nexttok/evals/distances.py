"""Scores of sets of features, beside the Frechet distance."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import log_softmax

ROWS = 1000  # of a block of distances


def inception_score(logits: Float[np.ndarray, "M K"], split: int = 5000) -> float:
    """exp of the mean divergence of class probabilities from their mean (Salimans et al., 2016).

    The mean over consecutive splits of `split` rows, as ADM's evaluator takes it.
    """
    scores = []
    for at in range(0, len(logits), split):
        log_p = log_softmax(logits[at : at + split].astype(np.float64), axis=-1)
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(0)))).sum(-1).mean()))
    return float(np.mean(scores))


def kernel_distance(
    a: Float[np.ndarray, "M D"],
    b: Float[np.ndarray, "L D"],
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """KID: unbiased squared MMD under the kernel (x . y / D + 1)^3 (Binkowski et al., 2018).

    Returns:
      Mean and standard deviation over random subsets of `size` rows, or of all where there are
      fewer; the draws are those of torch-fidelity.
    """
    size, draw = min(size, len(a), len(b)), np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        x = a[draw.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[draw.choice(len(b), size, replace=False)].astype(np.float64)
        found.append(_unbiased(x) + _unbiased(y) - 2 * _cubic(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _unbiased(x: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows."""
    kernel = _cubic(x, x)
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def clip_discrepancy(a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "L D"]) -> float:
    """CMMD: 1,000 times the squared MMD of unit embeddings under a Gaussian kernel of width 10,
    pairs of a row with itself included (Jayasumana et al., "Rethinking FID", 2024)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 1000 * (_gaussian(a, a) + _gaussian(b, b) - 2 * _gaussian(a, b))


def _gaussian(x: np.ndarray, y: np.ndarray, width: float = 10.0) -> float:
    """Mean of the kernel less 1, which cancels where kernels are subtracted."""
    norms, total = np.square(y).sum(1), 0.0
    for at in range(0, len(x), ROWS):
        rows = x[at : at + ROWS]
        square = np.square(rows).sum(1)[:, None] + norms - 2 * rows @ y.T
        total += np.expm1(square / (-2 * width**2)).sum()
    return total / (len(x) * len(y))


def precision_recall(
    real: Float[np.ndarray, "M D"], fake: Float[np.ndarray, "L D"], neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019), in float32.

    Precision is the share of fakes within the distance of some real row to its third nearest
    other one; recall the same with the sets exchanged. ADM's evaluator, which this follows,
    rounds features to float16 first. Every set has more than `neighbours` rows.
    """
    centre = real.mean(0, dtype=np.float64)  # distances stay, and cancel less
    real, fake = ((rows - centre).astype(np.float32) for rows in (real, fake))
    radii_real, radii_fake = (_radii(rows, neighbours) for rows in (real, fake))
    covered, inside = [], np.zeros(len(fake), bool)
    for at, rows, count in _blocks(real):
        radii = np.resize(radii_real[at : at + count], len(rows))
        met, held = _inside(rows, fake, radii, radii_fake)
        covered.append(np.asarray(met)[:count])
        inside |= np.asarray(held)
    return float(inside.mean()), float(np.concatenate(covered).mean())


def _blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, int]]:
    """(first row, ROWS rows or all, how many of them are not repeated)."""
    size = min(ROWS, len(rows))
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        yield at, np.resize(part, (size, part.shape[1])), len(part)


def _radii(rows: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of every row to its nearest others, the last of them."""
    parts = [np.asarray(_nearest(x, rows, neighbours))[:n] for _, x, n in _blocks(rows)]
    return np.concatenate(parts)


def _squares(x: Array, y: Array) -> Array:
    product = jnp.matmul(x, y.T, precision="highest")
    square = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None] - 2 * product
    return jnp.maximum(square, 0)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(
    x: Float[Array, "b D"], rows: Float[Array, "M D"], neighbours: int
) -> Float[Array, "b"]:
    """The row itself is nearest to it."""
    return -jax.lax.top_k(-_squares(x, rows), neighbours + 1)[0][:, -1]


@jax.jit
def _inside(
    x: Float[Array, "b D"], y: Float[Array, "L D"], radii_x: Array, radii_y: Array
) -> tuple[Bool[Array, "b"], Bool[Array, "L"]]:
    """Which x lie in some ball around a y, and which y in one around an x."""
    square = _squares(x, y)
    return (square <= radii_y[None]).any(1), (square <= radii_x[:, None]).any(0)
