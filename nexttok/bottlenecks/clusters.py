"""Coarse labels of a trained codebook: its rows in clusters (Guo et al., "Improving Autoregressive
Image Generation through Coarse-to-Fine Token Prediction", 2025).

Many rows decode to nearly the same pixels; a generator that first names clusters has fewer to tell
apart. Labels belong to one codebook: another seed or another training gives others.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nexttok.config import check

ROUNDS = 100


class Clusters(NamedTuple):
    """Clusters in the order of how often their codes were seen, most often first.

    Attributes:
      labels: of every code, 0 .. K - 1; all occur.
      centres: means of the rows of each cluster.
      inertia: summed squared distances of rows to their centres.
    """

    labels: Int[np.ndarray, "V"]
    centres: Float[np.ndarray, "K C"]
    inertia: float


def cluster(
    rows: Float[np.ndarray, "V C"], counts: Float[np.ndarray, "V"], size: int, seed: int
) -> Clusters:
    """k-means++ and Lloyd's rounds; an empty cluster gets the row that lies furthest away.

    Args:
      rows: of the codebook as a decoder reads them.
      counts: how often each was seen in training data; they order the clusters alone.
      size: number of clusters K.
      seed: of the first centres.

    Raises:
      ConfigError: not 2 <= size <= V.
    """
    from sklearn.cluster import KMeans  # takes a second to load

    allowed = f"2 .. {len(rows)}, the codes"
    check(2 <= size <= len(rows), "eval.clusters", size, allowed)
    found = KMeans(size, n_init=1, max_iter=ROUNDS, random_state=seed).fit(rows)
    masses = np.bincount(found.labels_, weights=counts, minlength=size)
    order = np.argsort(-masses, kind="stable")
    rank = np.empty(size, np.int32)
    rank[order] = np.arange(size, dtype=np.int32)
    return Clusters(rank[found.labels_], found.cluster_centers_[order], float(found.inertia_))


def representatives(rows: Float[np.ndarray, "V C"], clusters: Clusters) -> Int[np.ndarray, "K"]:
    """The code nearest to each centre, among its own."""
    distances = np.square(rows - clusters.centres[clusters.labels]).sum(-1)
    order = np.lexsort((distances, clusters.labels))
    first = np.unique(clusters.labels[order], return_index=True)[1]
    return order[first].astype(np.int32)


def entropies(counts: Float[np.ndarray, "V"], labels: Int[np.ndarray, "V"]) -> tuple[float, float]:
    """Bits of the label of a code, and of the code given its label, under its frequencies."""

    def bits(mass):
        share = mass[mass > 0] / mass.sum()
        return float(-(share * np.log2(share)).sum())

    coarse = bits(np.bincount(labels, weights=counts))
    return coarse, bits(counts) - coarse


def members(
    ids: Int[np.ndarray, "*n"], labels: Int[np.ndarray, "V"], random: np.random.Generator
) -> Int[np.ndarray, "*n"]:
    """For every id a random code of the same cluster, itself among them."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    own = labels[ids]
    return order[starts[own] + (random.random(ids.shape) * sizes[own]).astype(int)].astype(
        ids.dtype
    )
