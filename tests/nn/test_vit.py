"""The feature provider: sizes, positions on other grids, what it does to pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.nn import vit
from nexttok.nn.resize import bicubic
from nexttok.nn.vit import FeatureEncoder, ViT, ViTConfig, resize_positions

TINY = ViTConfig(8, 2, head_dim=4, patch=2, side=6, stored_grid=3)
MASK_TOKEN = {"small": 384, "base": 768, "large": 1024}


@pytest.mark.parametrize(
    ("preset", "released"), [("small", 22_056_576), ("base", 86_580_480), ("large", 304_368_640)]
)
def test_parameter_counts_of_the_released_models(preset, released):
    provider = vit.make(preset)
    params = jax.eval_shape(provider.init, jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(params)) == released - MASK_TOKEN[preset]
    assert provider.grid == (37, 37)


# Published vectors of the ONNX operator Resize (cubic, a = -0.75, half-pixel) on 1 .. 16 as 4 x 4.
def test_bicubic_enlarges_as_published():
    m, x = bicubic(8, 4), np.arange(1.0, 17.0).reshape(4, 4)
    row = [0.47265625, 0.76953125, 1.24609375, 1.875, 2.28125, 2.91015625, 3.38671875, 3.68359375]
    np.testing.assert_allclose((m @ x @ m.T)[0], row, rtol=1e-6)


def test_bicubic_offset_enters_the_scale_alone():
    m, x = bicubic(3, 4, 0.2), np.arange(1.0, 17.0).reshape(4, 4)  # a scale of 0.8
    expected = [
        [1.47119141, 2.78125, 4.08251953],
        [6.71142578, 8.02148438, 9.32275391],
        [11.91650391, 13.2265625, 14.52783203],
    ]
    np.testing.assert_allclose(m @ x @ m.T, expected, rtol=1e-6)


def test_bicubic_keeps_constants_and_its_own_grid():
    np.testing.assert_allclose(bicubic(5, 37, 0.1).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(bicubic(6, 6), np.eye(6))


def test_positions_follow_rows_and_columns():
    table = np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)
    rows, cols = bicubic(4, 3, 0.1), bicubic(5, 3, 0.1)
    expected = np.stack([rows @ table[..., i] @ cols.T for i in range(2)], -1)
    resized = resize_positions(jnp.asarray(table), (4, 5), antialias=False)
    np.testing.assert_allclose(resized, expected, rtol=1e-4, atol=1e-5)
    same = resize_positions(jnp.asarray(table), (3, 3), antialias=False)
    np.testing.assert_array_equal(same, table)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_antialiased_positions_widen_the_filter_when_they_shrink(size):
    scale = 6 / size
    at = (np.arange(size)[:, None] + 0.5) * scale - (np.arange(6)[None] + 0.5)
    x = np.abs(at / max(scale, 1.0))  # Keys' cubic with a = -0.5, normalized over the cells it hits
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    m = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, far, 0.0))
    m = m / m.sum(1, keepdims=True)
    table = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    resized = resize_positions(jnp.asarray(table[..., None]), (size, size), antialias=True)
    np.testing.assert_allclose(resized[..., 0], m @ table @ m.T, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    provider = FeatureEncoder(TINY)
    return provider, jax.jit(provider.init)(jax.random.key(0))


def test_features_have_the_grid_of_the_input_resolution(tiny):
    provider, params = tiny
    assert (provider.grid, provider.channels) == ((3, 3), 8)
    images = jax.random.uniform(jax.random.key(1), (2, 10, 10, 3), minval=-1.0)
    features = provider.apply(params, images)
    assert features.shape == (2, 3, 3, 8)
    # Unaffine final norm at initialization: every feature is standardized.
    np.testing.assert_allclose(features.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(features.std(-1), 1.0, atol=1e-3)


def test_pictures_are_normalized_as_imagenet(tiny):
    provider, params = tiny
    images = jax.random.uniform(jax.random.key(1), (1, 6, 6, 3), minval=-1.0)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = ((np.asarray(images) + 1) / 2 - mean) / std
    expected = ViT(TINY).apply({"params": params}, jnp.asarray(pixels))
    np.testing.assert_allclose(provider.apply(params, images), expected, rtol=1e-4, atol=1e-5)


def test_grey_pictures_are_repeated_and_other_channels_refused(tiny):
    provider, params = tiny
    grey = jax.random.uniform(jax.random.key(2), (1, 6, 6, 1), minval=-1.0)
    np.testing.assert_allclose(
        provider.apply(params, grey), provider.apply(params, jnp.repeat(grey, 3, -1)), rtol=1e-5
    )
    with pytest.raises(ConfigError, match=r"data\.channels = 2: expected 1 \| 3"):
        provider.apply(params, jnp.repeat(grey, 2, -1))


def test_registers_are_read_and_not_returned():
    provider = FeatureEncoder(dataclasses.replace(TINY, registers=2))
    params = jax.jit(provider.init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (1, 6, 6, 3), minval=-1.0)
    features = provider.apply(params, images)
    assert features.shape == (1, 3, 3, 8)
    other = provider.apply(params | {"register_tokens": jnp.ones((2, 8))}, images)
    assert float(jnp.abs(other - features).max()) > 1e-3


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match=r"features\.preset = 'huge': expected small \| base"):
        vit.make("huge")
