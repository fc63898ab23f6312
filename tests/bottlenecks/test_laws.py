"""Law table of bottlenecks: codes -> z_q -> codes is the identity; straight-through gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from nexttok.bottlenecks import fsq, kl, vq
from nexttok.config import ConfigError

CODEBOOK = jax.random.normal(jax.random.key(0), (50, 4))


def _fsq(levels):
    half = jnp.asarray(np.asarray(levels, np.float32) // 2)
    return dict(
        vocab=fsq.vocabulary(levels),
        channels=len(levels),
        to_values=lambda ids: fsq.ids_to_values(ids, levels),
        to_ids=lambda values: fsq.values_to_ids(values, levels),
        quantize=lambda z: fsq.quantize(z, levels),
        # rounding is passed over: the gradient is that of the bounding tanh
        surrogate=lambda z: fsq.bound(z, levels) / half[None],
    )  # fmt: skip


def _vq(normalize):
    return dict(
        vocab=50,
        channels=4,
        to_values=lambda ids: vq.ids_to_values(ids, CODEBOOK, normalize),
        to_ids=lambda v: vq.quantize(v, CODEBOOK, normalize)[1],
        quantize=lambda z: vq.quantize(z, CODEBOOK, normalize),
        surrogate=vq.unit if normalize else (lambda z: z),
    )


MEMBERS = {
    "fsq_odd": _fsq((5, 3, 7)),
    "fsq_even": _fsq((8, 4)),
    "fsq_paper": _fsq((8, 8, 8, 5, 5, 5)),
    "vq": _vq(False),
    "vq_normalized": _vq(True),
}


@pytest.fixture(params=MEMBERS, name="member")
def _member(request):
    return MEMBERS[request.param]


def test_every_code_round_trips(member):
    ids = jnp.arange(member["vocab"], dtype=jnp.int32)
    values = member["to_values"](ids)
    assert values.shape == (member["vocab"], member["channels"])
    np.testing.assert_array_equal(member["to_ids"](values), ids)
    assert len(np.unique(np.asarray(values), axis=0)) == member["vocab"]


def test_quantized_values_are_those_of_the_ids(member):
    z = 2.0 * jax.random.normal(jax.random.key(1), (300, member["channels"]))
    values, ids, _ = member["quantize"](z)
    assert ids.dtype == jnp.int32
    assert int(ids.min()) >= 0
    assert int(ids.max()) < member["vocab"]
    np.testing.assert_allclose(values, member["to_values"](ids), atol=1e-6)


def test_straight_through_gradient(member):
    z = jax.random.normal(jax.random.key(2), (20, member["channels"]))
    w = jax.random.normal(jax.random.key(3), z.shape)
    got = jax.grad(lambda z: (w * member["quantize"](z)[0]).sum())(z)
    expected = jax.grad(lambda z: (w * member["surrogate"](z)).sum())(z)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(got).max()) > 1e-3


def test_fsq_values_of_the_paper():
    even = fsq.ids_to_values(jnp.arange(8, dtype=jnp.int32), (8,))[:, 0]
    np.testing.assert_allclose(even, np.arange(-4, 4) / 4)
    odd = fsq.ids_to_values(jnp.arange(5, dtype=jnp.int32), (5,))[:, 0]
    np.testing.assert_allclose(odd, [-1, -0.5, 0, 0.5, 1])
    basis = fsq.values_to_ids(fsq.ids_to_values(jnp.asarray([12800]), (8, 8, 8, 5, 5, 5)),
                              (8, 8, 8, 5, 5, 5))  # fmt: skip
    assert int(basis[0]) == 12800
    assert fsq.vocabulary((8, 8, 8, 5, 5, 5)) == 64000


def test_fsq_reaches_every_level():
    z = jnp.linspace(-6, 6, 4001)[:, None]
    for level in (2, 3, 4, 5, 8):
        assert set(np.asarray(fsq.quantize(z, (level,))[1])) == set(range(level))


def test_fsq_refuses_bad_levels():
    with pytest.raises(ConfigError, match=r"tokenizer\.levels = \(8, 1\)"):
        fsq.validate((8, 1), "tokenizer.levels")


def test_vq_nearest_is_brute_force():
    z = jax.random.normal(jax.random.key(4), (40, 4))
    distance = np.square(np.asarray(z)[:, None] - np.asarray(CODEBOOK)[None]).sum(-1)
    np.testing.assert_array_equal(vq.nearest(z, CODEBOOK), distance.argmin(1))


def test_vq_losses_and_their_gradients():
    z = jax.random.normal(jax.random.key(5), (10, 4))
    _, ids, aux = vq.quantize(z, CODEBOOK, beta=0.25)
    error = float(jnp.square(z - CODEBOOK[ids]).mean())
    assert float(aux["codebook"]) == pytest.approx(error, rel=1e-5)
    assert float(aux["commitment"]) == pytest.approx(0.25 * error, rel=1e-5)
    grad_z = jax.grad(lambda z: vq.quantize(z, CODEBOOK)[2]["codebook"])(z)
    grad_e = jax.grad(lambda e: vq.quantize(z, e)[2]["commitment"])(CODEBOOK)
    assert float(jnp.abs(grad_z).max()) == 0.0
    assert float(jnp.abs(grad_e).max()) == 0.0


@pytest.mark.parametrize("normalize", [False, True])
def test_vq_entropy_is_its_definition(normalize):
    z = 0.3 * jax.random.normal(jax.random.key(6), (7, 3, 4))
    a, rows = np.asarray(z, np.float64).reshape(21, 4), np.asarray(CODEBOOK, np.float64)
    if normalize:
        a, rows = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, rows))
    p = softmax(-np.square(a[:, None] - rows[None]).sum(-1) / 0.5, axis=-1)
    expected = -(p * np.log(p)).sum(-1).mean() + (p.mean(0) * np.log(p.mean(0) + 1e-5)).sum()
    got = float(vq.entropy(z, CODEBOOK, normalize, temperature=0.5))
    assert got == pytest.approx(expected, rel=1e-4)


def test_vq_perplexity_counts_the_codes_in_use():
    assert float(vq.perplexity(jnp.arange(16).reshape(4, 4), 16)) == pytest.approx(16, rel=1e-5)
    assert float(vq.perplexity(jnp.zeros((5, 2), jnp.int32), 16)) == pytest.approx(1, rel=1e-5)
    assert float(vq.perplexity(jnp.asarray([3, 3, 9, 9]), 16)) == pytest.approx(2, rel=1e-5)


def test_kl_closed_form():
    moments = jnp.asarray([[1.0, -2.0, 0.0, np.log(4.0)]])
    mode, codes, aux = kl.quantize(moments, None)
    np.testing.assert_allclose(mode, [[1.0, -2.0]])
    assert codes is None
    expected = 0.5 * np.mean([1 + 1 - 1 - 0, 4 + 4 - 1 - np.log(4)])
    assert aux["kl"].shape == (1,)
    assert float(aux["kl"][0]) == pytest.approx(expected, rel=1e-5)
    many = kl.quantize(jnp.broadcast_to(moments, (20000, 4)), jax.random.key(0))[0]
    np.testing.assert_allclose(many.mean(0), [1, -2], atol=0.05)
    np.testing.assert_allclose(many.std(0), [1, 2], atol=0.05)
