"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017)."""

import numpy as np
from jaxtyping import Float


def statistics(features: Float[np.ndarray, "M D"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], in float64."""
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def _root(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(s)
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T


def gaussian_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: eigenvalues
    suffice and singular covariances are no trouble.
    """
    root = _root(cov_a)
    values = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.maximum(values, 0.0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_distance(a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "L D"]) -> float:
    """Frechet distance of two feature sets of at least two rows each."""
    return gaussian_distance(*statistics(a), *statistics(b))
