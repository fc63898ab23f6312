"""Pictures as pyramids of token maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nexttok.bottlenecks import multiscale as bottleneck
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.optim import permissive
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.tokenizers import sections

SHAPE = (8, 8, 3)


def section(**changes):
    """A tiny tokenizer: f2, sides 1, 2, 4."""
    base = sections.autoencoder(sections.MAPS, attention=(), quant_kernel=3)
    return sections.changed(base, **changes)


def make(shape=SHAPE, **changes):
    """The tokenizer of a changed section."""
    return autoencoder.make(section(**changes), shape)


@functools.cache
def initial():
    """Parameters with a codebook whose codes differ."""
    params = jax.jit(make().init)(jax.random.key(0))
    rows = jax.random.normal(jax.random.key(1), (16, 4))
    return params | {"quantizer": params["quantizer"] | {"embedding": rows}}


def pictures(count=3):
    coarse = jax.random.uniform(jax.random.key(2), (count, 4, 4, 3), minval=-1.0)
    return jax.image.resize(coarse, (count, *SHAPE), "linear")


def test_spec_and_prefixes():
    spec = make().spec
    assert (spec.grid, spec.vocab, spec.channels, spec.scales) == ((21,), 16, 4, (1, 2, 4))
    assert spec.nested
    assert spec.prefixes == (1, 5, 21)


def test_parameters_of_the_released_tokenizer():
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    sizes = dict(width=160, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), groups=32)
    sizes |= dict(channels=32, size=4096, phis=4)
    model = make((256, 256, 3), sides=sides, **sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert model.spec.length == 680
    quantizer = shapes.pop("quantizer")
    assert sum(p.size for p in jax.tree.leaves(quantizer)) == 4096 * 32 + 4 * (9 * 32 * 32 + 32)
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 108_780_291


def test_every_parameter_has_a_place():
    shapes = jax.eval_shape(make().init, jax.random.key(0))
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), shapes)


@functools.cache
def jitted():
    """encode(pictures) and decode(ids, keep=None) under the initial parameters."""
    model, params = make(), initial()
    decode = jax.jit(lambda ids, keep: model.decode(params, Tokens(ids=ids), None, keep))
    return jax.jit(lambda x: model.encode(params, x)), lambda ids, keep=None: decode(ids, keep)


def test_tokens_decode_to_what_the_loss_sees():
    x, (encode, decode) = pictures(), jitted()
    tokens = encode(x)
    assert tokens.ids.shape == (3, 21)
    assert tokens.values.shape == (3, 21, 4)
    error = jnp.square(decode(tokens.ids) - x).mean((1, 2, 3))
    loss, metrics = jax.jit(make().loss)(initial(), {"image": x}, jax.random.key(3))
    quantizer = metrics["codebook"] + metrics["commitment"]
    np.testing.assert_allclose(loss, error + quantizer, rtol=1e-4)
    assert loss.shape == (3,)
    np.testing.assert_array_equal(encode(x[::-1]).ids[::-1], tokens.ids)


def test_prefixes_decode_by_whole_maps():
    encode, decode = jitted()
    tokens = encode(pictures())
    five = decode(tokens.ids[:, :5])
    other = tokens.ids.at[:, 5:].set((tokens.ids[:, 5:] + 3) % 16)
    np.testing.assert_allclose(decode(other, jnp.full(3, 5)), five, atol=1e-5)
    np.testing.assert_allclose(decode(tokens.ids, jnp.full(3, 20)), five, atol=1e-5)
    np.testing.assert_allclose(decode(tokens.ids[:, :7]), five, atol=1e-5)
    assert float(jnp.abs(decode(tokens.ids) - five).max()) > 1e-3
    mixed = decode(tokens.ids, jnp.asarray([1, 5, 21]))
    np.testing.assert_allclose(mixed[1], five[1], atol=1e-5)
    np.testing.assert_allclose(mixed[2], decode(tokens.ids)[2], atol=1e-5)


def test_maps_one_by_one_are_the_values_of_encode():
    model, params, (encode, decode) = make(), initial(), jitted()
    tokens = encode(pictures())
    f_hat, values = model.start(3)
    seen = []
    for k, part in enumerate(bottleneck.split(tokens.ids, model.bottleneck.sides)):
        seen.append(values)
        f_hat, values = model.advance(params, f_hat, part, k)
    np.testing.assert_allclose(jnp.concatenate(seen, 1), tokens.values, atol=1e-5)
    decoder = jax.jit(lambda z: model.decoder.apply({"params": params["decoder"]}, z))
    np.testing.assert_allclose(decoder(f_hat), decode(tokens.ids), atol=1e-5)


@pytest.mark.slow
def test_loss_falls_codes_are_used_and_every_parameter_learns():
    model = make(perceptual_weight=0.1)
    params, x = jax.jit(model.init)(jax.random.key(0)), pictures(8)
    optimizer = permissive(optax.adam(5e-3))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        def loss(p):
            value, metrics = model.loss(p, {"image": x}, jax.random.key(1))
            return value.mean(), metrics

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics, grads

    found = []
    for _ in range(60):
        params, state, metrics, grads = step(params, state)
        found.append(float(metrics["mse"]))
    assert found[-1] < 0.5 * found[0]
    assert float(metrics["perplexity"]) > 2.0
    named = jax.tree_util.tree_leaves_with_path(grads)
    dead = [jax.tree_util.keystr(path) for path, g in named if not float(jnp.abs(g).max()) > 0]
    assert not dead


def test_the_adversarial_loss_is_that_of_the_vqgan():
    model = make(adversarial_weight=0.5, adaptive_weight=True, discriminator_layers=1)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"image": pictures(), "step": jnp.asarray(5)}
    loss = lambda p: model.loss(p, batch, jax.random.key(1))
    value, metrics = jax.eval_shape(loss, params)
    assert value.shape == (3,)
    assert {"generator", "discriminator", "adaptive_weight", "perplexity"} <= set(metrics)


def test_bad_sections_are_refused():
    with pytest.raises(
        ConfigError, match=r"tokenizer\.bottleneck\.sides = \(1, 2, 3\).*the latent's, 4"
    ):
        make(sides=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"tokenizer\.bottleneck\.phis = 5: expected 1 \.\. 3"):
        make(phis=5)
    wrong = section()
    wrong.bottleneck.side = 4
    with pytest.raises(ConfigError, match=r"tokenizer\.bottleneck\.side = 4: unknown key"):
        autoencoder.make(wrong, SHAPE)
    with pytest.raises(ConfigError, match=r"data\.frames = 4"):
        make((4, 8, 8, 3))
