"""DetailFlow against its official code, from a file of its released names.

Fixture: ByteFlow-AI/DetailFlow modelling/tokenizer.py with transformers' SigLIP 2 layers, two of
width 32 in the encoder and two of width 24 in the decoder, 8 latent tokens in groups of 2, 64 unit
codes of 8 channels, pictures of 16 x 16 in patches of 4; every parameter was overwritten by
`official.seeded` times its gain, and the ranks of disturbed codes among the 50 nearest were given.
The resolutions of this size and of the released 128 tokens, an attention mask, and three training
steps (4 tokens with the second disturbed, all 8 with the second group disturbed, 1 token without):
latents, codes, targets, pictures, losses (total, l2, codebook, commitment) and some gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import detailflow as config
from configs import tokenizers
from nexttok.config import ConfigError
from nexttok.interop import detailflow as interop
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.slots import visible
from nexttok.tokenizers import autoencoder, detail, detailflow
from tests.parity import official

SHAPE = (16, 16, 3)
GRADIENTS = {
    "encoder.latent_tokens": ("registers", "registers"),
    "encoder.refined_tokens": ("registers", "refined_registers"),
    "refine_conv.weight": ("registers", "from_latents", "kernel"),
    "quantize.embedding.weight": ("quantizer", "embedding"),
    "decoder.mask_token": ("decoder", "mask_token"),
}


@functools.cache
def loaded():
    """Model, converted parameters, fixture, pictures in [-1, 1]."""
    sizes = config.network((4, 4), 32, 2, 8, head_dim=16, mlp_hidden=128)
    decoder = dict(width=24, head_dim=12, mlp_hidden=96)
    section = config.tokenizer(sizes, tokenizers.codes(size=64), 2, decoder)
    made, found = detailflow.make(section, SHAPE), official.load("detailflow")
    params = jax.tree.map(jnp.asarray, interop.convert(official.state_dict(found), made))
    x = jnp.asarray(found["pictures"], jnp.float32) / 127.5 - 1.0
    return made, params, found, x


def case(found, name):
    """t, window (both 8 where nothing is disturbed), clean and disturbed codes of a step."""
    t, start = (int(v) for v in found[f"{name}/window"])
    ids = found[f"{name}/ids"].astype(np.int32)
    if start < 0:
        return t, (8, 8), ids[..., 0], ids[..., 0]
    return t, (start, start + (1 if start < 2 else 2)), ids[..., 0], ids[..., 1]


def test_converted_parameters_are_those_of_the_model():
    made, params, _, _ = loaded()
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), params)
    expected = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


def test_resolutions_and_mask():
    made, _, found, _ = loaded()
    for name, own in (("pixels", made.pixels), ("pixels256", detail.resolutions(128, 256, 1.5))):
        t, pixels, sides = found[name].T
        np.testing.assert_array_equal(own[t - 1], pixels)
        np.testing.assert_array_equal(
            detail.drawn_sides(own, 4 if name == "pixels" else 16)[t - 1], sides
        )
    sizes = config.tokenizer(
        config.network((4, 4), 32, 1, 12, head_dim=16), tokenizers.codes(), 4
    ).encoder
    steps = type(made.encoder_sizes)(**{k: v for k, v in sizes.items() if k != "name"}).steps(3)
    steps = jnp.asarray(steps)
    np.testing.assert_array_equal(visible(steps, steps), found["mask"])


@pytest.mark.parametrize("name", ["short", "full", "none"])
def test_latents_codes_pictures_and_targets(name):
    made, params, found, x = loaded()
    t, (start, end), clean, noisy = case(found, name)
    latents = jax.jit(made.latents)
    z = latents(params, x)
    official.close(z, found[f"{name}/latents"][0])
    ids = made.bottleneck.quantize(params["quantizer"], z, None, False).ids
    np.testing.assert_array_equal(ids, clean)
    values = made.bottleneck.ids_to_values(params["quantizer"], jnp.asarray(clean))
    if end < 8:
        known = made.bottleneck.ids_to_values(params["quantizer"], jnp.asarray(noisy))
        again = latents(params, x, known, end)
        official.close(again[:, end:], found[f"{name}/latents"][1][:, end:])
        new = made.bottleneck.quantize(params["quantizer"], again, None, False).ids
        np.testing.assert_array_equal(new[:, end:], noisy[:, end:])
        np.testing.assert_array_equal(found[f"{name}/ids"][:, :end, 2], clean[:, :end])
        assert (noisy[:, start:end] != clean[:, start:end]).any()
        values = jnp.concatenate([values, known.at[:, end:].set(
            made.bottleneck.ids_to_values(params["quantizer"], new)[:, end:])])  # fmt: skip
    side = int(made.sides[t - 1])
    official.close(made.render_at(params, values, t, side), found[f"{name}/recon"])
    target = detail.multiscale.resample(x, detail.degraded(16, int(made.pixels[t - 1]), side))
    official.close(target, found[f"{name}/target"])


@pytest.mark.parametrize("name", ["short", "full", "none"])
def test_losses_and_gradients(name, monkeypatch):
    made, params, found, x = loaded()
    t, window, _, noisy = case(found, name)
    monkeypatch.setattr(detail, "sample_length", lambda *_: jnp.asarray(t, jnp.int32))
    given = tuple(jnp.asarray(v, jnp.int32) for v in window)
    monkeypatch.setattr(detail, "sample_window", lambda *_: given)
    monkeypatch.setattr(detailflow.DetailFlow, "disturb", lambda *_: jnp.asarray(noisy))

    @jax.jit
    def step(params):
        loss, metrics = made.loss(params, {"image": x}, jax.random.key(0))
        return loss.mean(), metrics

    (total, metrics), grads = jax.value_and_grad(step, has_aux=True)(params)
    theirs = found[f"{name}/losses"]
    np.testing.assert_allclose(total, theirs[0], rtol=1e-4)
    if window[1] == 8:  # metrics are those of both halves, of which the second does not count
        np.testing.assert_allclose(metrics["codebook"], theirs[2], rtol=1e-4)
    else:
        np.testing.assert_allclose(metrics["mse"], theirs[1], rtol=1e-4)
    for entry, path in GRADIENTS.items():
        own = functools.reduce(lambda tree, key: tree[key], path, grads)
        if f"{name}/grad/{entry}" not in found:
            assert float(jnp.abs(own).max()) == 0.0
            continue
        official_one = found[f"{name}/grad/{entry}"].reshape(own.shape[::-1] if "conv" in entry
                                                              else own.shape)  # fmt: skip
        official.close(own, official_one.T if "conv" in entry else official_one, 1e-3)


def test_wrong_entries_and_other_networks_are_named():
    made, _, found, _ = loaded()
    state = official.state_dict(found)
    del state["refine_conv.bias"]
    state |= {"decoder.extra": np.zeros(1, np.float32), "repa_model.any": np.zeros(1, np.float32)}
    with pytest.raises(ConfigError) as error:
        interop.convert(state, made)
    assert "missing refine_conv.bias" in str(error.value)
    assert "unknown decoder.extra" in str(error.value)
    assert "repa_model" not in str(error.value)
    other = autoencoder.make(tokenizers.vqgan(), (16, 16, 1))
    with pytest.raises(ConfigError, match="a released size of configs/detailflow"):
        interop.convert(state, other)
