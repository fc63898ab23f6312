"""The multi-scale residual quantizer: its resizing, its sums, its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.bottlenecks import multiscale, vq
from nexttok.config import ConfigError

SIDES = (1, 2, 3, 5)
VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
C = 4


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


CODEBOOK = normal(0, 24, C)
PHIS = multiscale.init_phis(jax.random.key(1), 2, C)
PARTS = CODEBOOK, PHIS, SIDES
F = normal(2, 3, 5, 5, C)


def test_phi_of_scale():
    assert multiscale.phi_of_scale(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert multiscale.phi_of_scale(14, 4) == (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)
    assert multiscale.phi_of_scale(5, 1) == (0,) * 5
    assert multiscale.phi_of_scale(6, 6) == (0, 1, 2, 3, 4, 5)
    assert multiscale.phi_of_scale(1, 1) == (0,)


def test_area_is_adaptive_average_pooling():
    third = 1 / 3
    expected = [[0.5, 0.5, 0, 0, 0], [0, third, third, third, 0], [0, 0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(multiscale.area(3, 5), expected, rtol=1e-6)
    np.testing.assert_allclose(multiscale.area(2, 4), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_array_equal(multiscale.area(5, 5), np.eye(5))
    bins = multiscale.area(13, 16) > 0  # of torch's adaptive_avg_pool1d, which overlap
    assert bins.sum(1).tolist() == [2, 2, 2, 2, 3, 2, 2, 2, 3, 2, 2, 2, 2]
    assert bins.argmax(1).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]


def test_bicubic_is_cubic_convolution():
    # torch.nn.functional.interpolate(mode="bicubic") of unit vectors
    expected = [
        [1.096, -0.096, 0.0],
        [0.612, 0.46, -0.072],
        [0.0, 1.0, 0.0],
        [-0.072, 0.46, 0.612],
        [0.0, -0.096, 1.096],
    ]
    np.testing.assert_allclose(multiscale.bicubic(5, 3), expected, atol=1e-6)
    doubled = [[1.1054688, -0.1054688], [0.7734375, 0.2265625]]
    np.testing.assert_allclose(multiscale.bicubic(4, 2)[:2], doubled, atol=1e-6)
    np.testing.assert_allclose(multiscale.bicubic(4, 1), np.ones((4, 1)))
    np.testing.assert_allclose(multiscale.bicubic(16, 13).sum(1), np.ones(16), rtol=1e-6)


def test_contributions_sum_to_the_quantized_latent():
    values, ids, _ = multiscale.quantize(F, *PARTS)
    assert ids.shape == (3, 1 + 4 + 9 + 25)
    assert ids.dtype == jnp.int32
    total = jnp.zeros_like(F)
    for s, part in enumerate(multiscale.split(ids, SIDES)):
        h = CODEBOOK[part].reshape(3, SIDES[s], SIDES[s], C)
        if s < 3:
            h = jax.vmap(lambda x, s=s: _resized(x, multiscale.bicubic(5, SIDES[s])))(h)
        phi = PHIS[f"conv{multiscale.phi_of_scale(4, 2)[s]}"]
        total += multiscale.smooth(h, phi, 0.5)
    np.testing.assert_allclose(values, total, atol=1e-5)
    np.testing.assert_allclose(multiscale.ids_to_values(ids, *PARTS), total, atol=1e-5)


def _resized(x, matrix):
    return jnp.einsum("pi,qj,ijc->pqc", matrix, matrix, x)


def test_every_code_is_the_nearest_to_what_is_left():
    ids = multiscale.quantize(F, *PARTS)[1]
    for s, part in enumerate(multiscale.split(ids, SIDES)):
        rest = F - multiscale.prefix_values(ids, s, *PARTS)
        u = jax.vmap(lambda x, s=s: _resized(x, multiscale.area(SIDES[s], 5)))(rest)
        np.testing.assert_array_equal(part, vq.nearest(u.reshape(-1, C), CODEBOOK).reshape(3, -1))


def test_prefixes_do_not_read_finer_ids():
    ids = multiscale.quantize(F, *PARTS)[1]
    other = ids.at[:, 5:].set((ids[:, 5:] + 1) % 24)
    for s, end in ((1, 1), (2, 5)):
        expected = multiscale.prefix_values(ids, s, *PARTS)
        np.testing.assert_array_equal(multiscale.prefix_values(other, s, *PARTS), expected)
        # a scale that is not complete adds nothing
        cut = multiscale.ids_to_values(ids[:, : end + 3], *PARTS)
        np.testing.assert_array_equal(cut, expected)
        kept = multiscale.ids_to_values(ids, *PARTS, keep=jnp.full(3, end, jnp.int32))
        np.testing.assert_allclose(kept, expected, atol=1e-6)
    mixed = multiscale.ids_to_values(ids, *PARTS, keep=jnp.asarray([0, 13, 39]))
    for row, scales in ((0, 0), (1, 2), (2, 4)):
        expected = multiscale.prefix_values(ids, scales, *PARTS)[row]
        np.testing.assert_allclose(mixed[row], expected, atol=1e-6)


def test_inputs_are_what_coarser_scales_decode_to():
    ids = multiscale.quantize(F, *PARTS)[1]
    inputs = multiscale.ar_inputs(ids, *PARTS)
    assert inputs.shape == (3, 39, C)
    assert float(jnp.abs(inputs[:, 0]).max()) == 0.0
    f_hat, now = multiscale.start(3, C, SIDES)
    for s, part in enumerate(multiscale.split(ids, SIDES)):
        first = multiscale.ends(SIDES)[s] - SIDES[s] ** 2
        np.testing.assert_allclose(inputs[:, first : first + now.shape[1]], now, atol=1e-6)
        known = multiscale.prefix_values(ids, s, *PARTS)
        pooled = jax.vmap(lambda x, s=s: _resized(x, multiscale.area(SIDES[s], 5)))(known)
        np.testing.assert_allclose(now, pooled.reshape(now.shape), atol=1e-5)
        f_hat, now = multiscale.advance(f_hat, part, s, *PARTS)
    assert now.shape == (3, 0, C)
    np.testing.assert_allclose(f_hat, multiscale.quantize(F, *PARTS)[0], atol=1e-5)
    changed = multiscale.ar_inputs(ids.at[:, 14:].set(0), *PARTS)  # the finest ids feed nothing
    np.testing.assert_array_equal(changed, inputs)


def test_one_scale_without_phi_is_plain_quantization():
    phis = multiscale.init_phis(jax.random.key(3), 1, C)
    values, ids, aux = multiscale.quantize(F, CODEBOOK, phis, (5,), ratio=0.0)
    expected = vq.quantize(F, CODEBOOK)
    np.testing.assert_allclose(values, expected[0], atol=1e-6)
    np.testing.assert_array_equal(ids.reshape(3, 5, 5), expected[1])
    for name in ("codebook", "commitment"):
        assert float(aux[name]) == pytest.approx(float(expected[2][name]), rel=1e-5)


def test_losses_are_of_every_partial_sum():
    _, ids, aux = multiscale.quantize(F, *PARTS, beta=0.5)
    sums = [multiscale.prefix_values(ids, s, *PARTS) for s in (1, 2, 3, 4)]
    error = np.mean([np.square(np.asarray(F - a)).mean() for a in sums])
    assert float(aux["codebook"]) == pytest.approx(error, rel=1e-5)
    assert float(aux["commitment"]) == pytest.approx(0.5 * error, rel=1e-5)


def test_gradients_are_straight_through_and_separate():
    w = normal(4, *F.shape)
    through = jax.grad(lambda f: (w * multiscale.quantize(f, *PARTS)[0]).sum())(F)
    np.testing.assert_allclose(through, w)

    def loss(name):
        def of(f, codebook, phis):
            return multiscale.quantize(f, codebook, phis, SIDES)[2][name]

        return jax.grad(of, (0, 1, 2))(F, CODEBOOK, PHIS)

    for name, learns in (("codebook", (False, True, True)), ("commitment", (True, False, False))):
        for tree, moves in zip(loss(name), learns, strict=True):
            for leaf in jax.tree.leaves(tree):
                assert (float(jnp.abs(leaf).max()) > 0) == moves


def test_cosine_codes_ignore_lengths():
    rows = CODEBOOK * jnp.linspace(0.1, 3.0, 24)[:, None]
    parts = rows, PHIS, (5,)
    ids = multiscale.quantize(F, *parts, normalize=True)[1]
    cosine = vq.unit(F).reshape(-1, C) @ vq.unit(CODEBOOK).T
    np.testing.assert_array_equal(ids.ravel(), cosine.argmax(1))
    values = multiscale.contribution(ids, 0, *parts)
    plain = multiscale.smooth(rows[ids].reshape(3, 5, 5, C), PHIS["conv0"], 0.5)
    np.testing.assert_allclose(values, plain, atol=1e-6)  # values keep their length


def test_number_of_tokens():
    assert multiscale.ends(VAR)[-1] == 680
    assert multiscale.ends(VAR)[:-1] == (1, 5, 14, 30, 55, 91, 155, 255, 424)
    assert multiscale.ends((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))[-1] == 2240


def test_bad_pyramids_are_refused():
    with pytest.raises(ConfigError, match=r"t\.sides = \(1, 2, 4\).*the last is the latent's, 5"):
        multiscale.validate((1, 2, 4), 5, 1, 0.5, "t")
    for sides in ((), (2, 2, 5), (0, 5), (3, 1, 5)):
        with pytest.raises(ConfigError, match=r"t\.sides"):
            multiscale.validate(sides, 5, 1, 0.5, "t")
    with pytest.raises(ConfigError, match=r"t\.phis = 4: expected 1 \.\. 2"):
        multiscale.validate((1, 5), 5, 4, 0.5, "t")
    with pytest.raises(ConfigError, match=r"t\.phi_ratio = 1\.5"):
        multiscale.validate((1, 5), 5, 1, 1.5, "t")


def test_bands_hold_their_waves_and_add_up():
    """With an exact quantizer the sum after map k is the latent's waves below its limit."""
    rng = np.random.default_rng(0)
    f = rng.normal(size=(8,))
    spectrum = np.fft.fft(f)
    for p in (1, 2, 3, 5, 7):
        kept = np.abs(np.fft.fftfreq(8, 1 / 8)) < p / 2
        expected = np.fft.ifft(spectrum * kept).real
        low = multiscale.spectral(8, p) @ (multiscale.spectral(p, 8) @ f)
        np.testing.assert_allclose(low, expected, atol=1e-5)
        again = multiscale.spectral(p, 8) @ low  # shrinking loses nothing more
        np.testing.assert_allclose(again, multiscale.spectral(p, 8) @ f, atol=1e-5)
    np.testing.assert_array_equal(multiscale.spectral(8, 8), np.eye(8))
    flat = multiscale.spectral(8, 1) @ np.ones(1)
    np.testing.assert_allclose(flat, np.ones(8), atol=1e-6)


def test_a_spectral_pyramid_aims_at_its_bands():
    """Residuals of map k are the waves between its limit and the one before it."""
    f = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    rows = jax.random.normal(jax.random.key(1), (64, 3))
    phis = {"conv0": {"kernel": jnp.zeros((3, 3, 3, 3)), "bias": jnp.zeros(3)}}
    run = lambda sides: multiscale.quantize(f, rows, phis, sides, 0.25, 0.0, False, "spectral")
    values, ids, losses = run((1, 3, 4))
    sums = [
        multiscale.ids_to_values(ids[:, :n], rows, phis, (1, 3, 4), 0.0, None, "spectral")
        for n in (1, 10, 26)
    ]
    np.testing.assert_allclose(values, sums[-1], atol=1e-5)
    aims = [
        multiscale.resample(multiscale.shrink(f, p, "spectral"), multiscale.spectral(4, p))
        for p in (1, 3, 4)
    ]
    expected = np.mean([np.square(a - s).mean() for a, s in zip(aims, sums, strict=True)])
    np.testing.assert_allclose(losses["codebook"], expected, rtol=1e-4)
    np.testing.assert_allclose(aims[0], np.broadcast_to(f.mean((1, 2), keepdims=True), f.shape),
                               atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(aims[-1], f)
