"""BiGR's binary autoencoder against its official code, from entries of its released names.

Fixture: haoosz/BiGR bae/binaryae.py (BinaryAutoEncoder, norm_first as in its scripts) with 32
channels, multipliers (1, 2), one residual block per level, attention at 8 x 8, pictures of 16 x 16
and 10 bits of 32 channels; every parameter was overwritten by `official.seeded` times its gain. Two
pictures of bytes, the probabilities of the bits, thresholded bits and what they decode to.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bigr as config
from configs import tokenizers
from nexttok.bottlenecks import binary
from nexttok.config import ConfigError
from nexttok.interop import bigr
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.parity import official

NETWORK = dict(
    name="bigr", width=32, multipliers=(1, 2), blocks=1, attention=(1,), groups=32, z_channels=32
)


@functools.cache
def loaded():
    """Model, converted parameters, fixture, pictures in [-1, 1]."""
    found = official.load("bigr")
    made = autoencoder.make(tokenizers.autoencoder(NETWORK, config.bits(10, 32)), (16, 16, 3))
    state = {f"ae.{k}": v for k, v in official.state_dict(found).items()}
    state["disc.main.0.weight"] = np.zeros((4, 3, 4, 4), np.float32)
    params = jax.tree.map(jnp.asarray, bigr.convert(state, made))
    return made, params, found, jnp.asarray(found["image"].astype(np.float32) / 127.5 - 1.0)


def test_parameters_have_the_structure_of_init_and_a_place():
    made, params, _, _ = loaded()
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), shapes)


def test_bits_and_pictures():
    made, params, found, x = loaded()
    z = jax.jit(made.latents)(params, x)
    official.close(jax.nn.sigmoid(z), found["probabilities"])
    tokens = jax.jit(made.encode)(params, x)
    bits = binary.unpack(tokens.ids, 10).reshape(found["bits"].shape)
    np.testing.assert_array_equal(bits, found["bits"])
    assert 0.2 < found["bits"].mean() < 0.8
    pictures = jax.jit(made.decode)(params, Tokens(ids=tokens.ids))
    official.close((pictures + 1.0) / 2.0, found["decoded"])


def test_wrong_entries_and_other_networks_are_named():
    made, _, found, _ = loaded()
    state = official.state_dict(found)
    del state["generator.blocks.0.weight"]
    with pytest.raises(ConfigError, match=r"missing generator\.blocks\.0\.weight"):
        bigr.convert(state, made)
    other = autoencoder.make(tokenizers.vqgan(), (16, 16, 1))
    with pytest.raises(ConfigError, match="a released size of configs/bigr"):
        bigr.convert(state, other)
    section = tokenizers.autoencoder(NETWORK | dict(z_channels=0), config.bits(10, 32))
    with pytest.raises(ConfigError, match=r"z_channels = 0: expected a multiple of 32"):
        autoencoder.make(section, (16, 16, 3))
