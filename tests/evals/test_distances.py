"""Scores of features against independent formulas and the official implementations.

Fixture scores.npz: pytorch-fid 0.3.0 calculate_frechet_distance (also on fewer rows than features)
and torch-fidelity 0.4.0's KID and Inception Score (splits in order) on the features of inputs.sets.
"""

import numpy as np
import pytest
import scipy.linalg
from scipy.special import log_softmax
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from nexttok.evals import distances, frechet
from tests.parity import official
from tests.score.inputs import sets


def test_moments_of_parts_are_those_of_the_whole():
    rows = np.random.default_rng(0).normal(1e4, 1.0, (500, 7)).astype(np.float32)
    moments = frechet.Moments(7)
    for part in np.split(rows, [1, 100, 101, 350]):
        moments.add(part)
    mean, covariance = moments.gaussian
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64), rtol=1e-14)
    exact = np.cov(rows.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance, exact, rtol=1e-9, atol=1e-11)


def test_frechet_distance_is_that_of_sqrtm_and_of_pytorch_fid():
    (ma, a), (mb, b) = (frechet.statistics(x) for x in sets())
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.square(ma - mb).sum() + np.trace(a + b - 2 * root)
    got = frechet.gaussian_distance(ma, a, mb, b)
    assert got == pytest.approx(expected, rel=1e-8)
    assert got == pytest.approx(float(official.load("scores")["fid"]), rel=1e-8)


def test_frechet_distance_of_few_rows_is_exact():
    """Of r rows A^(1/2) B^(1/2) has the singular values of the r x r product of centred rows."""
    a, b = (x.astype(np.float64) for x in sets(12, 12))
    ca, cb = (x - x.mean(0) for x in (a, b))
    cross = np.linalg.svd(ca @ cb.T / 11, compute_uv=False).sum()
    spread = (np.square(ca).sum() + np.square(cb).sum()) / 11
    expected = np.square(a.mean(0) - b.mean(0)).sum() + spread - 2 * cross
    got = frechet.frechet_distance(a, b)
    assert got == pytest.approx(expected, rel=1e-9)
    assert got == pytest.approx(float(official.load("scores")["fid_few"]), rel=1e-6)


def test_frechet_distance_of_constant_features_is_that_of_their_means():
    a, b = np.zeros((5, 3)), np.tile([1.0, 2.0, 2.0], (4, 1))
    assert frechet.frechet_distance(a, b) == pytest.approx(9.0)


def test_inception_score():
    uniform = np.zeros((10, 4), np.float32)
    assert distances.inception_score(uniform) == pytest.approx(1.0)
    sure = np.float32(50) * np.eye(4, dtype=np.float32)
    assert distances.inception_score(np.tile(sure, (5, 1))) == pytest.approx(4.0)
    logits = 3 * sets()[0]
    scores = []
    for part in (logits[:200], logits[200:]):
        log_p = log_softmax(part.astype(np.float64), axis=1)
        log_mean = np.log(np.exp(log_p).mean(0))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))
    assert distances.inception_score(logits, 200) == pytest.approx(np.mean(scores), rel=1e-12)
    theirs = float(official.load("scores")["is"])
    assert distances.inception_score(logits, 150) == pytest.approx(theirs, rel=1e-5)


def test_kernel_distance_is_torch_fidelitys_and_unbiased():
    a, b = sets()
    stored = official.load("scores")
    mean, std = distances.kernel_distance(a, b, subsets=10, size=100)
    assert mean == pytest.approx(float(stored["kid"]), rel=1e-4)
    assert std == pytest.approx(float(stored["kid_std"]), rel=1e-4)
    b = b[:250]
    a = a[:250]
    aa, bb = (polynomial_kernel(x.astype(np.float64), degree=3) for x in (a, b))
    ab = polynomial_kernel(a.astype(np.float64), b.astype(np.float64), degree=3)
    off = ~np.eye(250, dtype=bool)
    expected = aa[off].mean() + bb[off].mean() - 2 * ab.mean()
    got, spread = distances.kernel_distance(a, b, subsets=2)
    assert got == pytest.approx(expected, rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-12)


def test_clip_discrepancy_in_blocks(monkeypatch):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets())
    gamma = 1 / 200
    aa, bb, ab = (rbf_kernel(x, y, gamma).mean() for x, y in
                  ((a.astype(np.float64),) * 2, (b.astype(np.float64),) * 2,
                   (a.astype(np.float64), b.astype(np.float64))))  # fmt: skip
    monkeypatch.setattr(distances, "ROWS", 70)
    got = distances.clip_discrepancy(a, b)
    assert got == pytest.approx(1000 * (aa + bb - 2 * ab), rel=1e-8)
    assert distances.clip_discrepancy(a, a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("rows", [1000, 70], ids=["one block", "blocks"])
def test_precision_and_recall(monkeypatch, rows):
    monkeypatch.setattr(distances, "ROWS", rows)
    real, fake = sets()
    fake[:50] += 3.0  # far from anything

    def covered(x, y):
        """Share of x within the ball of some y."""
        radii = NearestNeighbors(n_neighbors=4).fit(y).kneighbors(y)[0][:, 3]
        gaps = np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=-1)
        return (gaps <= radii).any(1).mean()

    precision, recall = distances.precision_recall(real, fake)
    assert precision == pytest.approx(covered(fake, real))
    assert recall == pytest.approx(covered(real, fake))
    assert 0 < precision <= 0.8
    assert distances.precision_recall(real, real) == (1.0, 1.0)
