"""Autoencoders whose decoders are aligned with a feature provider, and start warm (GigaTok)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gigatok, tokenizers
from nexttok.config import ConfigError
from nexttok.nn.norms import layer_norm
from nexttok.nn.patches import unpatchify
from nexttok.nn.vit import FeatureEncoder, ViTConfig
from nexttok.tokenizers import autoencoder

SHAPE = (16, 16, 3)
PROVIDER = FeatureEncoder(ViTConfig(16, 1, 8, patch=4, side=8, stored_grid=2))
NETWORK = gigatok.network(
    pixel_width=8, groups=4, z_channels=8, width=16, depth=1, head_dim=8, tokens=8
)
X = jax.random.uniform(jax.random.key(1), (2, *SHAPE), minval=-1)


def make(network=NETWORK, features=PROVIDER, **losses):
    section = tokenizers.autoencoder(
        network, gigatok.codes(size=16, channels=4), **(dict(align_weight=0.5) | losses)
    )
    return autoencoder.make(section, SHAPE, features=features)


@functools.cache
def initial():
    frozen = {"features": PROVIDER.init(jax.random.key(9))}
    return jax.jit(make().init)(jax.random.key(0)) | frozen


def losses(params, step=0, **changes):
    total, metrics = make(**changes).loss(
        params, {"image": X, "step": jnp.asarray(step)}, jax.random.key(2)
    )
    return total.mean(), metrics


@pytest.mark.slow
def test_alignment_adds_its_cosine_and_moves_decoder_and_codes():
    params = initial()
    plain = jax.jit(functools.partial(losses, features=None, align_weight=0.0))(params)[0]
    (total, metrics), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    assert 0.0 <= float(metrics["align"]) <= 2.0
    assert float(total) == pytest.approx(float(plain + 0.5 * metrics["align"]), rel=1e-5)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads["features"]))
    align = jax.jit(jax.grad(lambda p: losses(p)[1]["align"]))(params)
    assert float(jnp.abs(align["projector"]["out"]["kernel"]).max()) > 0
    assert float(jnp.abs(align["encoder"]["to_latents"]["kernel"]).max()) > 0
    pixels = jax.tree.leaves(align["decoder"]["pixels"])
    assert all(float(jnp.abs(g).max()) == 0.0 for g in pixels)


@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_over_patches_align_features_of_their_patches(registers):
    """Pictures are those without a tap, features those of the patches, not of latents."""
    network = tokenizers.transformer((4, 4), 32, 2, registers=registers, class_token=True)
    model = make(network, align_layer=1)
    params = model.init(jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (2, *model.grid, 4))
    decoder = {"params": params["decoder"]}
    pictures, tapped = model.decoder.apply(decoder, z, tap=1)
    np.testing.assert_array_equal(pictures, model.decoder.apply(decoder, z))
    assert tapped.shape == (2, 4, 4, 32)
    out = params["decoder"]["to_patches"]
    rows = layer_norm(tapped.reshape(2, 16, 32)) @ out["kernel"] + out["bias"].reshape(1, 1, -1)
    np.testing.assert_allclose(unpatchify(rows, (4, 4), (4, 4)), pictures, atol=1e-5)


def test_a_warm_start_ends_at_its_step():
    params, run = initial(), jax.jit(functools.partial(losses, warm_start=10))
    plain = float(jax.jit(losses)(params)[0])
    assert float(run(params, 9)[0]) > plain + 0.1
    assert float(run(params, 10)[0]) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features=None), r"losses\.align_weight = 0\.5: expected above 0 with a provider"),
        (dict(align_weight=0.0), r"losses\.align_weight = 0\.0: expected above 0 with a provider"),
        (dict(align_layer=1), r"losses\.align_layer = 1: expected a block of the decoder, below 1"),
        (
            dict(network=tokenizers.DIGITS | dict(width=8), features=None, align_weight=0.0,
                 warm_start=1),
            r"losses\.warm_start = 1: expected 0, as a network is not in two halves",
        ),
    ],
)  # fmt: skip
def test_losses_that_no_network_serves_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)
