"""Layers of the convolutional encoder and decoder, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate
from scipy.special import softmax

from nexttok.config import ConfigError
from nexttok.nn.conv import Conv
from nexttok.nn.networks.conv import ConvConfig, Decoder, Encoder, ResBlock, SpatialAttention

TINY = ConvConfig(4, (1, 2, 2), 1, attention=(2,), groups=2)


def randomized(module, x, seed=0):
    """Parameters with every entry random, so that biases and scales count too."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda s: draw.normal(0, 0.5, s.shape).astype(np.float32), shapes)


def random(*shape):
    return jnp.asarray(np.random.default_rng(5).normal(size=shape).astype(np.float32))


def conv3(x, p):
    x = np.asarray(x)
    out = [
        sum(correlate(picture[..., i], p["kernel"][:, :, i, o], "same") for i in range(x.shape[-1]))
        for picture in x
        for o in range(p["kernel"].shape[-1])
    ]
    return np.stack(out).reshape(len(x), -1, *x.shape[1:3]).transpose(0, 2, 3, 1) + p["bias"]


def group_norm(x, p, groups):
    x = np.asarray(x)
    y = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    y = y - y.mean((1, 3), keepdims=True)
    y = y / np.sqrt(np.square(y).mean((1, 3), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


@pytest.mark.parametrize(("latent", "count"), [(4, 83_653_863), (16, 83_821_011)])
def test_parameter_count_of_the_released_f8_autoencoders(latent, count):
    config = ConvConfig(128, (1, 2, 4, 4), 2)
    image, z = jnp.zeros((1, 256, 256, 3)), jnp.zeros((1, 32, 32, latent))
    networks = ((Encoder(config, 2 * latent), image), (Decoder(config, 3), z))
    params = [jax.eval_shape(m.init, jax.random.key(0), x) for m, x in networks]
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_convolution_is_a_zero_padded_correlation():
    x = random(2, 5, 4, 3)
    params = randomized(Conv(2), x)
    y = Conv(2).apply({"params": params}, x)
    np.testing.assert_allclose(y, conv3(x, params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [4, 6])
def test_residual_block_is_its_definition(features):
    x = random(2, 3, 4, 4)
    block = ResBlock(features, TINY)
    p = randomized(block, x)
    h = conv3(silu(group_norm(x, p["norm1"], 2)), p["conv1"])
    h = conv3(silu(group_norm(h, p["norm2"], 2)), p["conv2"])
    assert ("out" in p) == (features != 4)
    skip = dense(np.asarray(x), p["out"]) if features != 4 else x
    np.testing.assert_allclose(block.apply({"params": p}, x), skip + h, rtol=1e-4, atol=1e-4)


def test_attention_is_its_definition():
    x = random(2, 3, 4, 4)
    module = SpatialAttention(TINY)
    p = randomized(module, x)
    y = group_norm(x, p["norm"], 2).reshape(2, 12, 4)
    q, k, v = (dense(y, p[name]) for name in ("wq", "wk", "wv"))
    y = softmax(q @ k.swapaxes(1, 2) / 2.0, axis=-1) @ v  # sqrt(4 channels) = 2
    expected = x + dense(y, p["proj"]).reshape(x.shape)
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-4, atol=1e-5)


def test_strides_levels_and_attention():
    x, z = random(1, 8, 12, 3), random(1, 2, 3, 5)
    assert TINY.stride == 4
    encoder, decoder = Encoder(TINY, 10), Decoder(TINY, 3)
    code = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    picture = jax.eval_shape(decoder.init_with_output, jax.random.key(0), z)
    assert code[0].shape == (1, 2, 3, 10)
    assert picture[0].shape == (1, 8, 12, 3)
    down, up = code[1]["params"], picture[1]["params"]
    assert [len(down[f"level{i}"]) for i in range(3)] == [1, 1, 2]
    assert [len(up[f"level{i}"]) for i in range(3)] == [2, 2, 4]
    assert {n for n in down if "down" in n} == {"conv_down0", "conv_down1"}
    assert {n for n in up if "up" in n} == {"conv_up1", "conv_up2"}


def test_pictures_of_a_batch_do_not_mix():
    x = random(2, 4, 4, 3)
    encoder = Encoder(ConvConfig(4, (1, 2), 1, groups=2), 4)
    params = randomized(encoder, x)
    run = jax.jit(lambda x: encoder.apply({"params": params}, x))
    np.testing.assert_allclose(run(x)[::-1], run(x[::-1]), rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_near_float32_and_returns_float32():
    z = random(1, 2, 2, 3)
    full = Decoder(ConvConfig(4, (1, 2), 1, groups=2), 3)
    half = Decoder(ConvConfig(4, (1, 2), 1, groups=2, dtype="bfloat16"), 3)
    params = {"params": randomized(full, z)}
    expected, got = full.apply(params, z), half.apply(params, z)
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - expected).max() / jnp.abs(expected).max())
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(groups=3), r"tokenizer\.encoder\.groups = 3: expected a divisor of 4 channels"),
        (dict(groups=0), r"tokenizer\.encoder\.groups = 0: expected at least 1"),
        (dict(multipliers=()), r"tokenizer\.encoder\.multipliers = \(\)"),
        (
            dict(attention=(0, 2)),
            r"tokenizer\.encoder\.attention = \(0, 2\): expected levels 0 \.\. 1",
        ),
        (dict(blocks=0), r"tokenizer\.encoder\.blocks = 0: expected at least 1"),
    ],
)
def test_bad_sizes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ConvConfig(**(dict(width=4, multipliers=(1, 2), blocks=1, groups=2) | changes))
