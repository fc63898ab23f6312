"""Videos as grids of codes, and the 3D layers under them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.data.shapes import Shapes
from nexttok.data.source import DataConfig
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.networks import video as layers
from nexttok.optim import permissive
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.tokenizers import sections

SHAPE = (4, 8, 8, 3)


def make(shape=SHAPE, **changes):
    section = tokenizers.videogpt(width=16, stride=(2, 4, 4), groups=4)
    return autoencoder.make(
        sections.changed(section, **(dict(channels=4, size=32) | changes)), shape
    )


@functools.cache
def initial():
    return jax.jit(make().init)(jax.random.key(0))


def clips(count):
    source = Shapes(DataConfig("shapes", "", 8, 3, 6, 4, "none", 0, 1), "train", 0)
    return jnp.asarray(np.stack([source[i]["image"] for i in range(count)]))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_convolution_is_its_3d_definition(stride, causal):
    frames = 5 if causal else 4
    x = normal(0, 2, frames, 6, 6, 3)
    module = layers.Conv3D(5, stride, causal=causal)
    params = module.init(jax.random.key(1), x)["params"]
    time, side = (3 if s == 1 else 4 for s in stride)
    time, around = (3, (0, 0)) if causal else (time, (1, 1))
    kernel = params["conv"]["kernel"].reshape(side, side, time, 3, 5).transpose(2, 0, 1, 3, 4)
    seen = jnp.concatenate([x[:, :1], x[:, :1], x], axis=1) if causal else x
    expected = jax.lax.conv_general_dilated(
        seen, kernel, (stride[0], stride[1], stride[1]), (around, (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )  # fmt: skip
    got = module.apply({"params": params}, x)
    assert got.shape == (2, -(-frames // stride[0]), 6 // stride[1], 6 // stride[1], 5)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_causal_pair_sees_no_later_frame():
    section = tokenizers.videogpt(width=16, stride=(2, 4, 4), groups=4)
    changed = sections.changed(section, channels=4, size=32, causal=True)
    model = autoencoder.make(changed, (5, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(0))
    x = normal(1, 2, 5, 8, 8, 3)
    encoder = jax.jit(lambda x: model.latents(params, x))
    z, other = encoder(x), encoder(x.at[:, 3:].set(normal(2, 2, 2, 8, 8, 3)))
    assert z.shape == (2, 3, 2, 2, 4)
    np.testing.assert_allclose(z[:, :2], other[:, :2], atol=1e-5)
    assert (z[:, 2] != other[:, 2]).any()
    network = jax.jit(lambda z: model.decoder.apply({"params": params["decoder"]}, z))
    y, other = network(z), network(z.at[:, 2].set(0.0))
    assert y.shape == x.shape
    np.testing.assert_allclose(y[:, :3], other[:, :3], atol=1e-5)
    assert (y[:, 3:] != other[:, 3:]).any()
    with pytest.raises(ConfigError, match=r"data\.frames = 4: expected 1 and a multiple of 2"):
        autoencoder.make(changed, (4, 8, 8, 3))


def test_expansion_places_a_cell_where_its_latent_is():
    x = jnp.zeros((1, 2, 3, 3, 2)).at[0, 1, 0, 2].set(1.0)
    module = layers.Expand(1, (2, 2), "float32")
    params = module.init(jax.random.key(0), x)["params"]
    kernel = jnp.zeros_like(params["conv"]["conv"]["kernel"]).at[1, 1, 2:4].set(1.0)  # the centre
    params = {"conv": {"conv": params["conv"]["conv"] | {"kernel": kernel}}}
    y = module.apply({"params": params}, x)[0, ..., 0]
    expected = np.zeros((4, 6, 6))
    expected[2:4, 0:2, 4:6] = 2.0
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("name", "axis"), list(layers.AXES.items()))
def test_axial_attention_is_attention_along_one_axis(name, axis):
    x = normal(0, 2, 3, 4, 2, 6)
    module = layers.AxisAttention(axis, 2, "float32")
    params = module.init(jax.random.key(1), x)["params"]
    q, k, v = (np.asarray(x @ params[w]["kernel"]) for w in ("wq", "wk", "wv"))
    rows = [np.moveaxis(a.reshape(2, 3, 4, 2, 2, 3), axis, 3) for a in (q, k, v)]
    weights = softmax(np.einsum("...qhd,...khd->...hqk", *rows[:2]) / 3**0.5, axis=-1)
    mixed = np.einsum("...hqk,...khd->...qhd", weights, rows[2])
    mixed = np.moveaxis(mixed, 3, axis).reshape(x.shape)
    expected = mixed @ np.asarray(params["proj"]["kernel"])
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "stages"),
    [
        ((2, 4, 4), ((2, 2), (1, 2))),
        ((4, 2, 2), ((2, 2), (2, 1))),
        ((4, 4, 4), ((2, 2), (2, 2))),
        ((1, 1, 1), ()),
    ],
)
def test_strides(stride, stages):
    model = make((8, 16, 16, 3), stride=stride, blocks=0)
    assert model.encoder_sizes.stages == stages
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 8, 16, 16, 3), jnp.float32)
    ids = jax.eval_shape(lambda p, x: model.encode(p, x).ids, params, x)
    assert model.spec.grid == tuple(n // s for n, s in zip((8, 16, 16), stride, strict=True))
    assert ids.shape == (2, model.spec.length)
    decoded = jax.eval_shape(lambda p, i: model.decode(p, Tokens(ids=i)), params, ids)
    assert decoded.shape == x.shape


def test_every_parameter_has_a_place():
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), initial())


def test_codes_and_loss():
    model, params, x = make(), initial(), normal(1, 3, *SHAPE)
    tokens = jax.jit(model.encode)(params, x)
    assert tokens.ids.shape == (3, 2 * 2 * 2)
    assert model.spec.grid == (2, 2, 2)
    assert model.spec.prefixes == (8,)
    np.testing.assert_allclose(jnp.linalg.norm(tokens.values, axis=-1), 1.0, rtol=1e-5)
    decode = jax.jit(model.decode)
    recon = decode(params, tokens)
    again = decode(params, Tokens(values=tokens.values))
    np.testing.assert_allclose(again, recon, atol=1e-5)
    loss, metrics = jax.jit(model.loss)(params, {"image": x}, jax.random.key(2))
    error = 4.0 * jnp.square(recon - x).mean((1, 2, 3, 4))
    quantizer = metrics["codebook"] + metrics["commitment"]
    np.testing.assert_allclose(loss, error + quantizer, rtol=1e-4)
    swapped = jax.jit(model.encode)(params, x[::-1]).ids
    np.testing.assert_array_equal(swapped[::-1], tokens.ids)


@pytest.mark.slow
def test_loss_falls_on_moving_shapes_and_reaches_every_parameter():
    model, x = make(entropy_weight=0.05), clips(16)
    assert x.shape == (16, *SHAPE)
    params, optimizer = initial(), permissive(optax.adam(4e-3))
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
    for _ in range(80):
        params, state, metrics, grads = step(params, state)
        found.append(float(metrics["mse"]))
        if len(found) == 1:
            named = jax.tree_util.tree_leaves_with_path(grads)
            dead = [jax.tree_util.keystr(k) for k, g in named if not float(jnp.abs(g).max()) > 0]
            assert not dead
    assert found[-1] < 0.5 * found[0]
    assert float(metrics["perplexity"]) > 2.0


def test_bad_sections_are_refused():
    with pytest.raises(ConfigError, match=r"data\.frames = 0: expected at least 1"):
        make((8, 8, 3))
    with pytest.raises(
        ConfigError, match=r"data\.frames = 3: expected a multiple of 2, the stride"
    ):
        make((3, 8, 8, 3))
    with pytest.raises(ConfigError, match=r"data\.resolution = 6"):
        make((4, 6, 6, 3))
    with pytest.raises(
        ConfigError, match=r"tokenizer\.encoder\.stride = \(2, 4, 2\): expected powers"
    ):
        make(stride=(2, 4, 2))
    with pytest.raises(ConfigError, match=r"tokenizer\.encoder\.groups = 3"):
        make(groups=3)
    with pytest.raises(ConfigError, match=r"tokenizer\.encoder\.heads = 3"):
        make(heads=3)
    with pytest.raises(ConfigError, match=r"tokenizer\.bottleneck\.size = 1"):
        make(size=1)
