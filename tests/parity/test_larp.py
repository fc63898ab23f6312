"""LARP's tokenizer and its prior against their official code, from a file of its released names.

Fixture: hywang66/LARP models/{larp_tokenizer,bottleneck,gptc}.py made smaller: width 48, two
layers of two heads on each side, 12 latent tokens of 16 channels, 64 codes, clips of 8 x 16 x 16 in
patches of 4 x 8 x 8, a prior of width 32 with two layers of two heads; timm's norms with eps =
1e-5, their default at the time of the release. Every parameter was overwritten by `official.seeded`
times its gain; tables of positions are the official ones. Two clips of bytes, the encoder's
latents, codes (deterministic), pixels in [0, 1], codebook, commitment and total quantizer loss; and
of the prior in evaluation mode, at 90 of 500 steps, which codes its second round reads, the logits
of both rounds, their loss, and its gradient with respect to the layer before the codes and the
positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import larp as config
from configs import tokenizers
from nexttok.bottlenecks import prior, vq
from nexttok.config import ConfigError
from nexttok.interop import larp
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens
from tests.parity import official

SHAPE = (8, 16, 16, 3)


def model():
    sizes = config.network((4, 8, 8), 48, 2, 12, head_dim=24)
    book = config.prior(12, 32, 2, ramp=150, head_dim=16, channels=16, size=64)
    return autoencoder.make(config.tokenizer(sizes, book), SHAPE)


def state(found):
    """Parameters and tables of positions."""
    tables = {k.removeprefix("buffer/"): v for k, v in found.items() if k.startswith("buffer/")}
    return official.state_dict(found) | tables


@functools.cache
def loaded():
    """Model, converted parameters, fixture, clips in [-1, 1]."""
    found, made = official.load("larp"), model()
    params = jax.tree.map(jnp.asarray, larp.convert(state(found), made))
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
    assert (found["ids"][0] != found["ids"][1]).sum() >= 6
    coded = made.bottleneck.quantize(params["quantizer"], z, None, False)
    codebook, commitment, total = found["losses"]
    losses = coded.metrics["codebook"], coded.metrics["commitment"], coded.loss
    expected = 0.1 * codebook, 0.025 * commitment, 0.1 * total
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    pictures = jax.jit(made.decode)(params, Tokens(ids=tokens.ids))
    official.close((pictures + 1.0) / 2.0, found["pixels"])


def test_prior_and_its_gradients_with_the_same_draws():
    made, params, found, x = loaded()
    bottleneck = made.bottleneck
    share = prior.ramped(jnp.asarray(90.0), bottleneck.ramp, bottleneck.replaced)
    assert float(share) == pytest.approx(float(found["share"]), rel=1e-5)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        coded = bottleneck.quantize(params["quantizer"], made.latents(params, x), None, False)
        rows = vq.unit(params["quantizer"]["embedding"])
        seen = []

        def predict(vectors, i):
            out = bottleneck.prior.apply({"params": params["quantizer"]["prior"]}, vectors)
            seen.append(out @ rows.T)
            return out

        draw = lambda logits, i: jnp.asarray(found["drawn"])
        each = prior.surprise(
            predict, draw, coded.values, coded.ids, rows, jnp.asarray(found["replaced"]), 2
        )
        return each.mean(), jnp.stack(seen)

    (value, logits), grads = jax.jit(loss)(params)
    official.close(logits, found["logits"])
    assert float(value) == pytest.approx(float(found["prior"]), rel=1e-5)
    official.close(grads["encoder"]["to_latents"]["kernel"].T, found["grad_to_latents"])
    official.close(grads["quantizer"]["prior"]["positions"], found["grad_positions"][0])
    assert found["replaced"].sum() == 9
    assert float(jnp.abs(grads["quantizer"]["embedding"]).max()) == 0.0


def test_wrong_entries_and_other_networks_are_named():
    made, _, found, _ = loaded()
    entries = state(found)
    del entries["prior_model.head.bias"]
    entries["decoder.extra"] = np.zeros(1, np.float32)
    entries["decoder_latent_pe"] = np.zeros_like(entries["decoder_latent_pe"])
    with pytest.raises(ConfigError) as error:
        larp.convert(entries, made)
    assert "missing prior_model.head.bias" in str(error.value)
    assert "unknown decoder.extra" in str(error.value)
    assert "decoder_latent_pe is not positions = 'sincos_sum'" in str(error.value)
    other = autoencoder.make(tokenizers.vqgan(), (16, 16, 1))
    with pytest.raises(ConfigError, match="a released size of configs/larp"):
        larp.convert(entries, other)
