"""TiTok against its official code, from a file of its released names.

Fixture: bytedance/1d-tokenizer modeling/titok.py with its small size made smaller (width 64, two
layers, two heads), 6 latent tokens of 12 channels, 64 unit codes, pictures of 48 x 48 in patches
of 16, and a MaskGIT decoder of width 32 with one residual block per level and 48 codes of 16
channels; every parameter was overwritten by `official.seeded` times its gain. Two pictures of
bytes, the encoder's latents, codes, the decoder's logits, pixels in [0, 1] and the quantizer's
losses.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import titok as config
from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.interop import titok
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.parity import official

SHAPE = (48, 48, 3)


def model():
    sizes = config.network((16, 16), 64, 2, 6, head_dim=32, scrambled=True)
    pixels = dict(
        name="proxy", codes=48, code_channels=16, pixel_width=32, multipliers=(1, 1, 2, 2, 4),
        blocks=1, groups=32,
    )  # fmt: skip
    codes = tokenizers.codes(channels=12, size=64)
    return autoencoder.make(tokenizers.autoencoder(sizes, codes, pixels), SHAPE)


@functools.cache
def loaded():
    """Model, converted parameters, fixture, pictures in [-1, 1]."""
    found, made = official.load("titok"), model()
    params = jax.tree.map(jnp.asarray, titok.convert(official.state_dict(found), made))
    return made, params, found, jnp.asarray(found["image"].astype(np.float32) / 127.5 - 1.0)


def test_parameters_have_the_structure_of_init_and_a_place():
    made, params, _, _ = loaded()
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), shapes)


def test_latents_codes_losses_and_pictures():
    made, params, found, x = loaded()
    z = jax.jit(made.latents)(params, x)
    official.close(z, found["latents"])
    tokens = jax.jit(made.encode)(params, x)
    np.testing.assert_array_equal(tokens.ids, found["ids"])
    assert (found["ids"][0] != found["ids"][1]).sum() >= 3
    coded = made.bottleneck.quantize(params["quantizer"], z, None)
    losses = coded.metrics["codebook"], coded.metrics["commitment"]
    np.testing.assert_allclose(losses, found["losses"], rtol=1e-4)
    pictures = jax.jit(made.decode)(params, Tokens(ids=tokens.ids))
    official.close((pictures + 1.0) / 2.0, found["pixels"])


def test_wrong_entries_and_other_networks_are_named():
    made, _, found, _ = loaded()
    state = official.state_dict(found)
    del state["decoder.ffn.0.bias"]
    state["decoder.extra"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError) as error:
        titok.convert(state, made)
    assert "missing decoder.ffn.0.bias" in str(error.value)
    assert "unknown decoder.extra" in str(error.value)
    other = autoencoder.make(tokenizers.vqgan(), (16, 16, 1))
    with pytest.raises(ConfigError, match="a released size of configs/titok"):
        titok.convert(state, other)
