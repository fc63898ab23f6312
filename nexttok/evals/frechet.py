"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017)."""

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dpstrf


class Moments:
    """Mean and covariance of rows that come in parts, in float64.

    Parts are merged by their own means (Chan, Golub and LeVeque, 1979), so that nothing cancels.

    Attributes:
      count: rows seen; mean [D]; scatter [D, D], the sum of products of deviations from the mean.
    """

    def __init__(self, width: int):
        """No rows yet, of `width` features."""
        self.count, self.mean = 0, np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, features: Float[np.ndarray, "M D"]) -> None:
        """Takes in rows."""
        rows = features.astype(np.float64)
        mean, total = rows.mean(0), self.count + len(rows)
        rows -= mean
        self.scatter += rows.T @ rows
        gap = mean - self.mean
        self.scatter += np.outer(gap, gap) * (self.count * len(rows) / total)
        self.mean += gap * (len(rows) / total)
        self.count = total

    @property
    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D], of two rows or more."""
        return self.mean, self.scatter / (self.count - 1)


def statistics(features: Float[np.ndarray, "M D"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], in float64."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian


def _factor(s: np.ndarray) -> np.ndarray:
    """F [D, r] with s = F F^T, by Cholesky with pivots; r is the rank that rounding leaves."""
    lower, pivots, rank, _ = dpstrf(s, lower=1)
    factor = np.zeros((len(s), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def gaussian_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F F^T and B = G G^T the trace of the root is the sum of the singular values of F^T G:
    they are exact where covariances are singular, as those of fewer rows than features are.
    """
    cross = np.linalg.svd(_factor(cov_a).T @ _factor(cov_b), compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_distance(a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "L D"]) -> float:
    """Frechet distance of two feature sets of at least two rows each."""
    return gaussian_distance(*statistics(a), *statistics(b))
