"""Numbers against closed forms and reference implementations."""

import numpy as np
import pytest
import scipy.linalg

from nexttok.evals import frechet, metrics
from nexttok.evals.memorization import memorization, nearest_distance
from nexttok.evals.results import read_results, write_results

RNG = np.random.default_rng(0)


def test_psnr_closed_form():
    x = np.zeros((2, 4, 4, 1), np.float32)
    y = np.stack([np.full((4, 4, 1), 0.2), np.full((4, 4, 1), 2.0)]).astype(np.float32)
    np.testing.assert_allclose(metrics.psnr(x, y), [20.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(metrics.psnr(x, x), [100.0, 100.0])


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    x = RNG.uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(metrics.ssim(x, x), 1.0)
    noisy = metrics.ssim(x, x + RNG.normal(0, 0.5, x.shape).astype(np.float32))
    assert (noisy < 0.9).all()
    assert metrics.ssim(x[:, :5, :5], x[:, :5, :5]).shape == (3,)


def test_codebook_usage():
    found = metrics.codebook_usage(np.asarray([[0, 1], [1, 0]]), 4)
    assert found["usage"] == 0.5
    assert found["perplexity"] == pytest.approx(2.0)
    uniform = metrics.codebook_usage(np.arange(4), 4)
    assert uniform["perplexity"] == pytest.approx(4.0)
    assert metrics.bits_per_image(256, 64000) == pytest.approx(4087.0, abs=1)


def test_frechet_of_diagonal_gaussians():
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])
    got = frechet.gaussian_distance(np.zeros(2), a, np.asarray([3.0, 0.0]), b)
    assert got == pytest.approx(9 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_frechet_agrees_with_sqrtm_and_survives_singular_covariances():
    x, y = RNG.normal(size=(50, 6)), RNG.normal(1, 2, (60, 6)) @ RNG.normal(size=(6, 6))
    (ma, a), (mb, b) = frechet.statistics(x), frechet.statistics(y)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.square(ma - mb).sum() + np.trace(a + b - 2 * root)
    assert frechet.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-8)
    flat = RNG.normal(size=(4, 6))
    assert frechet.frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-6)


def test_nearest_distance_is_brute_force():
    x, y = RNG.normal(size=(30, 5)), RNG.normal(size=(40, 5))
    brute = np.sqrt(np.square(x[:, None] - y[None]).sum(-1))
    np.testing.assert_allclose(nearest_distance(x, y), brute.min(1), rtol=1e-6)
    own = np.sqrt(np.square(y[:, None] - y[None]).sum(-1)) + 1e9 * np.eye(40)
    np.testing.assert_allclose(nearest_distance(y, y, skip_self=True), own.min(1), rtol=1e-6)


def test_memorization_tells_copies_from_new_images():
    train = RNG.normal(size=(300, 4, 4, 1))
    assert memorization(train[:50] + 1e-4, train)["share"] == 1.0
    assert memorization(RNG.normal(size=(300, 4, 4, 1)), train)["share"] < 0.15
    half = np.concatenate([train[:25], RNG.normal(size=(25, 4, 4, 1)) + 5])
    assert memorization(half, train)["share"] == 0.5


def test_results_are_finite_or_refused(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"b": [{"x": 1.5}], "a": 2})
    assert read_results(path) == {"a": 2, "b": [{"x": 1.5}]}
    with pytest.raises(ValueError, match=r"results\.b\[0\]\.x = nan"):
        write_results(path, {"b": [{"x": float("nan")}]})
    assert read_results(path)["a"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
