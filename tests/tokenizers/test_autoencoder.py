"""The convolutional autoencoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nexttok.config import ConfigError
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.optim import permissive
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.tokenizers import sections


def make(shape=(16, 16, 3), **changes):
    section = sections.autoencoder(sections.KL, attention=(), kl_weight=1e-6)
    section = sections.changed(section, **changes)
    return autoencoder.make(section, shape, where="latent")


@functools.cache
def initial():
    """Parameters, which no test's picture size or weights change."""
    return make().init(jax.random.key(0))


def test_shapes_mode_and_sampling():
    model = make(scaling_factor=2.0)
    params = initial()
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    mode = model.encode(params, x)
    assert mode.values.shape == (2, 64, 4)
    assert model.spec.grid == (8, 8)
    decoded = model.decode(params, mode)
    assert decoded.shape == x.shape
    np.testing.assert_array_equal(mode.values, model.encode(params, x).values)
    assert float(jnp.abs(mode.values - model.encode(params, x, jax.random.key(2)).values).max()) > 0
    halved = make(scaling_factor=1.0).encode(params, x).values
    np.testing.assert_allclose(mode.values, 2.0 * halved, rtol=1e-5, atol=1e-6)
    doubled = Tokens(values=2.0 * mode.values)  # the decoder divides by the factor once
    wider = make(scaling_factor=4.0).decode(params, doubled)
    np.testing.assert_allclose(wider, decoded, rtol=1e-4, atol=1e-5)


def test_a_plain_autoencoder_draws_nothing():
    model = make(sample_posterior=False, kl_weight=0.0)
    params = initial()
    x = jnp.zeros((1, 16, 16, 3))
    np.testing.assert_array_equal(
        model.encode(params, x, jax.random.key(1)).values, model.encode(params, x).values
    )


def test_samples_have_the_posterior_mean_and_variance():
    model = make(shape=(4, 4, 3), scaling_factor=0.5)
    params = initial()
    x = jax.random.uniform(jax.random.key(1), (1, 4, 4, 3), minval=-1.0)
    out = params["encoder"]["out"]
    bias = out["bias"].at[4:].set(jnp.log(jnp.arange(1.0, 5.0)))  # variances 1, 2, 3, 4
    out = {"kernel": out["kernel"].at[:, 4:].set(0.0), "bias": bias}
    params = {"encoder": params["encoder"] | {"out": out}}
    copies = jnp.repeat(x, 4096, axis=0)
    encode = jax.jit(model.encode)
    draws = encode(params, copies, jax.random.key(2)).values
    mode = encode(params, x).values
    np.testing.assert_allclose(draws.mean(0), mode[0], atol=0.08)
    variance = np.broadcast_to(0.25 * np.arange(1.0, 5.0), (4, 4))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.12)


def test_loss_is_its_definition_and_reaches_every_parameter():
    model = make(sample_posterior=False, kl_weight=0.5, scaling_factor=3.0)
    params = initial()
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1.0)

    def total(p):
        loss, metrics = model.loss(p, {"image": x}, jax.random.key(2))
        return loss.mean(), (loss, metrics)

    grads, (loss, metrics) = jax.jit(jax.grad(total, has_aux=True))(params)
    recon = model.decode(params, model.encode(params, x))
    error = jnp.square(recon - x).mean((1, 2, 3))
    moments = model.encoder.apply({"params": params["encoder"]}, x)
    mean, log_var = np.split(np.asarray(moments, np.float64), 2, axis=-1)
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean()
    np.testing.assert_allclose(loss.mean(), error.mean() + 0.5 * kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["mse"], error.mean(), rtol=1e-4)
    assert loss.shape == (2,)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not float(jnp.abs(g).max()) > 0
    ]
    assert not dead


def test_loss_falls():
    model = make(kl_weight=1e-3)
    params = initial()
    x = jax.image.resize(
        jax.random.uniform(jax.random.key(1), (8, 4, 4, 3)), (8, 16, 16, 3), "linear"
    )
    optimizer = permissive(optax.adam(3e-3))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        loss = lambda p: model.loss(p, {"image": x}, key)[0].mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    values = []
    for i in range(30):
        params, state, value = step(params, state, jax.random.key(i))
        values.append(float(value))
    assert values[-1] < 0.4 * values[0]


def test_group_norm_is_its_definition():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 5, 4, 12))
    module = GroupNorm(3)
    params = {"scale": jnp.arange(12.0), "bias": jnp.ones(12)}
    groups = np.asarray(x).reshape(2, 20, 3, 4)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * np.arange(12.0) + 1
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_strided_convolution_pads_right_and_bottom():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    params = {"kernel": jnp.arange(9.0).reshape(3, 3, 1, 1), "bias": jnp.zeros(1)}
    y = Conv(1, 2).apply({"params": params}, x)
    assert y.shape == (1, 2, 2, 1)
    assert float(y[0, 0, 0, 0]) == 0.0  # the kernel's first tap lies on pixel (0, 0)
    last = Conv(1, 2).apply({"params": params}, jnp.roll(x, (1, 1), (1, 2)))
    assert float(last[0, 0, 0, 0]) == 4.0


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"data\.resolution = 15: expected a multiple of 2"):
        make((15, 15, 3))
    with pytest.raises(ConfigError, match=r"latent\.encoder\.groups = 5"):
        make(groups=5).init(jax.random.key(0))
    with pytest.raises(ConfigError, match=r"latent\.bottleneck\.channels = 0: expected at least 1"):
        make(channels=0)
    with pytest.raises(
        ConfigError, match=r"latent\.encoder\.attention = \(2,\): expected levels 0 \.\. 1"
    ):
        make(attention=(2,))
