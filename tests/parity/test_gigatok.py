"""GigaTok against its official code, from files of its released names.

Fixture: SilentView/GigaTok vq_vit_model.py, VQVitModelPlus ("1d/", 16 queries from levels) and
VQVitModel2DPlus ("2d/", plain layers), with transformers of its size "tiny" (width 256, four
layers, four heads), convolutions of width 32 at two levels, a map of 64 channels, 64 codes with the
rotation trick and features of 24 channels aligned after block 2; every parameter was overwritten by
`official.seeded` times its gain. Two pictures of bytes, 16 x 16; in training mode: latents, codes,
pixels, those drawn directly from the encoder's map, the losses of the codes and of the map, and the
projected features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gigatok as config
from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.interop import gigatok
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.parity import official

SHAPE = (16, 16, 3)
KINDS = ("1d", "2d")


def model(kind):
    network = config.network(
        pixel_width=32, multipliers=(1, 2), blocks=2, groups=32, width=256, depth=4, head_dim=64,
        tokens=16 if kind == "1d" else 0,
    )  # fmt: skip
    return autoencoder.make(
        tokenizers.autoencoder(network, config.codes(size=64, entropy_weight=0.005)), SHAPE
    )


@functools.cache
def loaded(kind):
    """Model, converted parameters, fixture, official entries, pictures in [-1, 1]."""
    found, made = official.load("gigatok"), model(kind)
    x = jnp.asarray(found["image"].astype(np.float32) / 127.5 - 1.0)
    own = f"{kind}/"
    found = {k.removeprefix(own): v for k, v in found.items() if k.startswith(own)}
    state = official.state_dict(found)
    return made, jax.tree.map(jnp.asarray, gigatok.convert(state, made)), found, state, x


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_structure_of_init_and_a_place(kind):
    made, params, _, _, _ = loaded(kind)
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_codes_losses_and_pictures(kind):
    made, params, found, _, x = loaded(kind)
    z = jax.jit(made.latents)(params, x)
    official.close(z.reshape(found["latents"].shape), found["latents"])
    tokens = jax.jit(made.encode)(params, x)
    np.testing.assert_array_equal(tokens.ids, found["ids"])
    assert (found["ids"][0] != found["ids"][1]).sum() >= 3
    coded = made.bottleneck.quantize(params["quantizer"], z, None)
    losses = [coded.metrics[name] for name in ("codebook", "commitment", "entropy")]
    np.testing.assert_allclose(losses, found["losses"], rtol=1e-4)
    official.close(jax.jit(made.decode)(params, Tokens(ids=tokens.ids)), found["pixels"])


@pytest.mark.parametrize("kind", KINDS)
def test_aligned_features_and_the_warm_start(kind):
    made, params, found, state, x = loaded(kind)
    tokens = jax.jit(made.encode)(params, x)
    values = tokens.values.reshape(2, *made.grid, -1)
    decoder, encoder = {"params": params["decoder"]}, {"params": params["encoder"]}
    pictures, tapped = made.decoder.apply(decoder, values, tap=1)
    official.close(pictures, found["pixels"])
    h = np.asarray(tapped).reshape(2, 64, -1)
    name = "s1to2decoder" if kind == "1d" else "s2ddecoder"
    for i in (0, 2, 4):
        h = h @ state[f"{name}.distill_mlp.{i}.weight"].T + state[f"{name}.distill_mlp.{i}.bias"]
        h = h / (1 + np.exp(-h)) if i < 4 else h
    official.close(h, found["aligned"])
    theirs = made.encoder.apply(encoder, x, method="map")
    ours, _ = made.decoder.apply(decoder, values, method="map")
    np.testing.assert_allclose(jnp.square(ours - theirs).mean(), found["feature_loss"], rtol=1e-4)
    direct = made.decoder.apply(decoder, theirs, method="draw")
    official.close(direct, found["direct"])


def test_wrong_entries_and_other_networks_are_named():
    made, _, _, state, _ = loaded("1d")
    state = dict(state)
    del state["s2to1encoder.global_proj.bias"]
    state["decoder.extra"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError) as error:
        gigatok.convert(state, made)
    assert "missing s2to1encoder.global_proj.bias" in str(error.value)
    assert "unknown decoder.extra" in str(error.value)
    other = autoencoder.make(tokenizers.vqgan(), (16, 16, 1))
    with pytest.raises(ConfigError, match="a released size of configs/gigatok"):
        gigatok.convert(state, other)
