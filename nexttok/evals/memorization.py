"""Are the samples copies of training images?"""

import numpy as np
from jaxtyping import Float


def nearest_distance(
    x: Float[np.ndarray, "M F"], reference: Float[np.ndarray, "R F"], skip_self: bool = False
) -> Float[np.ndarray, "M"]:
    """Euclidean distance of each row to the nearest reference row (another one if `skip_self`)."""
    out = np.empty(len(x))
    norms = np.square(reference).sum(1)
    for at in range(0, len(x), 1000):
        rows = x[at : at + 1000]
        square = np.square(rows).sum(1)[:, None] + norms - 2 * rows @ reference.T
        if skip_self:
            square[np.arange(len(rows)), at + np.arange(len(rows))] = np.inf
        out[at : at + 1000] = np.sqrt(np.maximum(square.min(1), 0.0))
    return out


def memorization(
    samples: Float[np.ndarray, "M *s"], train: Float[np.ndarray, "R *s"]
) -> dict[str, float]:
    """Share of samples nearer to a training image than training images are to each other.

    "Nearer" means below the 5th percentile of the distances between training images and their
    nearest other training image, so real unseen data scores about 0.05.

    Returns:
      {"share", "threshold" (pixel distance)}.
    """
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    real = train.reshape(len(train), -1).astype(np.float64)
    threshold = float(np.percentile(nearest_distance(real, real, skip_self=True), 5))
    share = float((nearest_distance(flat, real) < threshold).mean())
    return {"share": share, "threshold": threshold}
