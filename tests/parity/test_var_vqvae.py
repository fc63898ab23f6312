"""VAR's tokenizer under its released names: codes, sums, inputs, pictures, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.bottlenecks import multiscale as bottleneck
from nexttok.config import ConfigError
from nexttok.interop import var_vqvae
from nexttok.tokens import Tokens
from tests.parity.official import FIXTURES, state_dict
from tests.tokenizers.test_multiscale import make, section

SIDES = (1, 2, 3, 4, 6)
SIZES = dict(width=64, groups=32, size=48, channels=8, sides=SIDES, phis=4)
SIZES |= dict(attention=(1,))
SHAPE = (12, 12, 3)
OFFICIAL = dict(np.load(FIXTURES / "var_vqvae.npz"))


@functools.cache
def loaded():
    """Arrays of the fixture, the model and its converted parameters."""
    params = var_vqvae.convert(state_dict(OFFICIAL), section(**SIZES), SHAPE)
    arrays = {k: jnp.asarray(v) for k, v in OFFICIAL.items() if not k.startswith("shape/")}
    return arrays, make(SHAPE, **SIZES), jax.tree.map(jnp.asarray, params)


def close(got, expected):
    """To 1e-4 of the largest entry."""
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_latents_codes_and_inputs():
    official, model, params = loaded()
    assert model.spec.scales == SIDES == tuple(OFFICIAL["sides"])
    encoder = jax.jit(lambda x: model.encoder.apply({"params": params["encoder"]}, x))
    close(encoder(official["image"]), official["f"])
    tokens = jax.jit(model.encode)(params, official["image"])
    np.testing.assert_array_equal(tokens.ids, official["ids"])
    close(tokens.values[:, 1:], official["ar"])
    assert float(jnp.abs(tokens.values[:, 0]).max()) == 0.0


def test_sums_and_pictures():
    official, model, params = loaded()
    parts = params["quantizer"]["embedding"], params["quantizer"]["phi"], model.bottleneck.sides
    close(bottleneck.ids_to_values(official["ids"], *parts), official["f_hat"])
    close(bottleneck.prefix_values(official["ids"], 2, *parts), official["prefix2"])
    pictures = jax.jit(model.decode)(params, Tokens(ids=official["ids"]))
    close(pictures, official["reconstruction"])


def test_loss_and_its_gradients():
    official, model, params = loaded()

    def total(f, quantizer):
        values, _, losses = bottleneck.quantize(
            f, quantizer["embedding"], quantizer["phi"], model.bottleneck.sides
        )
        loss = sum(losses.values())
        return loss + (official["projection"] * values).sum(), loss

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (grad_f, grads), loss = grad(official["f"], params["quantizer"])
    close(loss, official["loss"])
    close(grad_f, official["grad_f"])
    close(grads["embedding"], official["grad_embedding"])
    close(grads["phi"]["conv1"]["kernel"], official["grad_phi1"])


def test_codes_by_cosine():
    official, model, params = loaded()
    quantizer = params["quantizer"]
    _, ids, _ = bottleneck.quantize(
        official["f"],
        quantizer["embedding"],
        quantizer["phi"],
        model.bottleneck.sides,
        normalize=True,
    )
    np.testing.assert_array_equal(ids, official["ids_cosine"])


def test_counters_are_not_needed_but_everything_else_is():
    state = state_dict(OFFICIAL) | {"quantize.ema_vocab_hit_SV": np.zeros((5, 48), np.float32)}
    var_vqvae.convert(state, section(**SIZES), SHAPE)
    del state["quantize.quant_resi.qresi_ls.2.bias"]
    with pytest.raises(ConfigError, match=r"missing quantize\.quant_resi\.qresi_ls\.2\.bias"):
        var_vqvae.convert(state, section(**SIZES), SHAPE)
