"""Tokens that are clusters of frozen features (DiGIT)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digit, tokenizers
from nexttok.config import ConfigError
from nexttok.nn import features
from nexttok.nn.patches import patchify
from nexttok.tokenizers import autoencoder

SHAPE = (16, 16, 1)
X = jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1)
DECODER = tokenizers.DIGITS | dict(width=8)


@functools.cache
def made():
    """Tokenizer of 8 clusters, its parameters with those of the provider."""
    provider = features.make("patches", "4", SHAPE)
    model = autoencoder.make(digit.tokenizer(DECODER, 16, 8), SHAPE, features=provider)
    frozen = {"features": provider.init(jax.random.key(0))}
    return model, jax.jit(model.init)(jax.random.key(2)) | frozen


def test_distances_of_patch_features_are_those_of_pixels():
    provider = features.make("patches", "4", SHAPE)
    rows = provider.apply(provider.init(jax.random.key(3)), X).reshape(-1, 16)
    pixels = patchify(X, (4, 4)).reshape(-1, 16)
    np.testing.assert_allclose(
        jnp.linalg.norm(rows[0] - rows[5]), jnp.linalg.norm(pixels[0] - pixels[5]), rtol=1e-5
    )
    assert float(jnp.abs(rows - pixels).max()) > 0.1


def test_a_step_moves_clusters_to_the_means_of_their_features_and_trains_the_decoder_alone():
    model, params = made()
    assert "encoder" not in params

    def loss(p):
        total, metrics = model.loss(p, {"image": X, "step": jnp.asarray(0)}, jax.random.key(4))
        return total.mean(), metrics

    (_, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for part, trained in (("features", False), ("quantizer", False), ("decoder", True)):
        sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(grads[part])]
        assert (max(sizes) > 0) == trained, part
    rows = params["quantizer"]["embedding"] + metrics["moves"]["quantizer"]["embedding"]
    z = np.asarray(model.latents(params, X)).reshape(-1, 16)
    far = np.square(z[:, None] - np.asarray(rows)[None]).sum(-1).min(1).mean()
    assert far < 0.9 * np.square(z - z.mean(0)).sum(-1).mean()
    assert float(metrics["moves"]["quantizer"]["seen"]) == 1.0


def test_ids_are_the_nearest_clusters():
    model, params = made()
    z = np.asarray(model.latents(params, X)).reshape(-1, 16)
    rows = np.asarray(params["quantizer"]["embedding"])
    nearest = np.square(z[:, None] - rows[None]).sum(-1).argmin(1)
    tokens = jax.jit(model.encode)(params, X)
    np.testing.assert_array_equal(tokens.ids.ravel(), nearest)
    assert model.decode(params, tokens).shape == X.shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(name="", preset="4"), r"features\.name = '': expected dinov2 \| patches"),
        (dict(name="patches", preset="3"), r"features\.preset = '3': expected 2 \| 4 \| 8 \| 16"),
        (dict(name="patches", preset="8"), r"bottleneck\.channels = 16: expected 64"),
        (dict(name="clip", preset="4"), r"features\.name = 'clip'"),
    ],
)
def test_providers_that_do_not_fit_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        autoencoder.make(
            digit.tokenizer(DECODER, 16, 8),
            SHAPE,
            features=features.make(**given, image_shape=SHAPE),
        )


def test_frozen_features_decode_nothing():
    section = digit.tokenizer(DECODER, 16, 8)
    section.decoder = section.encoder
    with pytest.raises(ConfigError, match=r"decoder\.name = 'frozen': expected a network with a"):
        autoencoder.make(section, SHAPE, features=features.make("patches", "4", SHAPE))
