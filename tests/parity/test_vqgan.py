"""Convolutional tokenizers against their official code: names in, the same numbers out.

Fixtures: FoundationVision/LlamaGen (tokenizer/tokenizer_image), LTH14/mar (models/vae.py) and
FoundationVision/VAR (models/basic_vae.py), at toy sizes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from nexttok.bottlenecks import kl, vq
from nexttok.config import ConfigError
from nexttok.interop import lpips, vqgan
from nexttok.interop.checkpoints import Converter
from nexttok.nn.discriminator import PatchGAN
from nexttok.nn.lpips import LPIPS
from nexttok.nn.networks.conv import ConvConfig, Decoder, Encoder
from nexttok.tokenizers import autoencoder, criteria
from nexttok.tokens import Tokens
from tests.parity.official import FIXTURES, state_dict
from tests.tokenizers import sections

CLOSE = dict(rtol=1e-4, atol=1e-5)
LLAMAGEN = sections.autoencoder(
    width=64, multipliers=(1, 2), attention=(1,), decoder_attention=(1,), groups=32, z_channels=16,
    channels=8, size=32, entropy_weight=0.1, adversarial_weight=0.5,
    discriminator_start=5, discriminator_width=8, discriminator_layers=2,
    discriminator_norm="batch", adaptive_weight=True, perceptual_weight=1.0,
    perceptual_checkpoint="vgg.pth",
)  # fmt: skip
MAR = sections.autoencoder(
    sections.KL,
    width=64, multipliers=(1, 2), attention=(1,), decoder_attention=(), groups=32,
    channels=4, scaling_factor=0.2325,
)  # fmt: skip


@functools.cache
def fixture(name):
    with np.load(FIXTURES / f"{name}.npz") as saved:
        return {k: v if k.startswith("shape/") else jnp.asarray(v) for k, v in saved.items()}


@functools.cache
def perceptual():
    """LPIPS parameters; the linear layers' weights are not negative, as in the released ones."""
    state = state_dict(fixture("lpips"))
    return lpips.convert({k: np.abs(v) if "lin" in k else v for k, v in state.items()})


@functools.cache
def llamagen():
    """The model, its parameters and the fixture."""
    found, judge = fixture("llamagen_vq"), "discriminator."
    state = state_dict(found)
    model = autoencoder.make(LLAMAGEN, (16, 16, 3))
    networks = {k: v for k, v in state.items() if not k.startswith(judge)}
    params = vqgan.convert(networks, LLAMAGEN, (16, 16, 3))
    reader = Converter({k: v for k, v in state.items() if k.startswith(judge)}, "discriminator")
    params["discriminator"] = reader.finish(vqgan.convert_discriminator(reader, judge, 8, 2))
    return model, jax.tree.map(jnp.asarray, params), found


def test_converted_parameters_have_the_structure_of_init():
    model, params, _ = llamagen()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
    assert jax.tree.map(np.shape, perceptual()) == jax.tree.map(lambda s: s.shape, lpips.shapes())


def test_llamagen_encodes_quantizes_and_decodes_alike():
    model, params, found = llamagen()
    hidden = model.encoder.apply({"params": params["encoder"]}, found["image"])
    np.testing.assert_allclose(hidden, found["hidden"], **CLOSE)
    tokens = model.encode(params, found["image"])
    np.testing.assert_array_equal(tokens.ids, found["ids"])
    np.testing.assert_allclose(model.decode(params, tokens), found["decoded_ids"], **CLOSE)
    np.testing.assert_allclose(found["decoded"], found["decoded_ids"], **CLOSE)


def test_llamagen_codebook_losses():
    _, params, found = llamagen()
    rows = params["quantizer"]["embedding"]
    _, _, aux = vq.quantize(found["hidden"], rows, normalize=True)
    entropy = 0.1 * vq.entropy(found["hidden"], rows, normalize=True)
    got = [aux["codebook"], aux["commitment"], entropy]
    np.testing.assert_allclose(got, found["vq_losses"], rtol=1e-4)


def test_discriminator_and_hinge_losses():
    model, params, found = llamagen()
    real, fake = (
        model.losses.patches.apply({"params": params["discriminator"]}, found[name])
        for name in ("image", "decoded")
    )
    np.testing.assert_allclose(real, found["logits_real"], **CLOSE)
    np.testing.assert_allclose(fake, found["logits_fake"], **CLOSE)
    hinge = criteria.hinge_discriminator(real, fake), criteria.hinge_generator(fake)
    np.testing.assert_allclose([h.mean() for h in hinge], found["hinge"], rtol=1e-4)


def test_lpips_value():
    found = fixture("llamagen_vq")
    x, y = found["image"], found["other"]
    value = jax.jit(LPIPS().apply)({"params": perceptual()}, x, y)
    np.testing.assert_allclose(value, found["lpips"], rtol=1e-4)


@functools.cache
def whole_loss():
    """step -> ((mean loss, metrics), gradients), compiled once."""
    model, params, found = llamagen()

    def total(params, frozen, step):
        batch = {"image": found["image"], "step": step}
        loss, metrics = model.loss(params | frozen, batch, jax.random.key(0))
        return loss.mean(), metrics

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    return lambda step: run(params, {"perceptual": perceptual()}, jnp.asarray(step, jnp.int32))


@pytest.mark.parametrize("step", [4, 5])
def test_the_whole_loss_and_its_gradients(step):
    """Generator plus discriminator loss, before and from the discriminator's start.

    At the entropy's temperature of 0.01 the official float32 gradients are 1.3e-4 off float64 ones.
    """
    found = fixture("llamagen_vq")
    (loss, metrics), grads = whole_loss()(step)
    expected = found[f"generator{step}"] + found[f"discriminator{step}"]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["adaptive_weight"], found["adaptive"][0], rtol=1e-4)
    places = {
        "conv_in": grads["encoder"]["conv_in"]["kernel"],
        "conv_out": grads["decoder"]["conv_out"]["kernel"],
        "disc0": grads["discriminator"]["conv0"]["kernel"],
        "embedding": grads["quantizer"]["embedding"],
    }
    for name, got in places.items():
        official = found[f"grad{step}/{name}"]
        if official.ndim == 4:
            official = official.transpose(2, 3, 1, 0)
        scale = np.abs(official).max()
        np.testing.assert_allclose(got, official, atol=2e-4 * scale + 1e-9, rtol=1e-4)


@pytest.mark.parametrize(("name", "width", "side"), [("mar_kl", 64, 8), ("mar_kl16", 32, 16)])
def test_mar_moments_kl_and_pictures(name, width, side):
    found, image, shape = fixture(name), fixture(name)["image"], (side, side, 3)
    small = sections.changed(ConfigDict(MAR.to_dict()), width=width)
    model = autoencoder.make(small, shape)
    params = jax.tree.map(jnp.asarray, vqgan.convert(state_dict(found), small, shape))
    moments = model.encoder.apply({"params": params["encoder"]}, image)
    np.testing.assert_allclose(moments, found["moments"], **CLOSE)
    tokens = model.encode(params, image)
    np.testing.assert_allclose(
        tokens.values.reshape(found["mode"].shape), 0.2325 * found["mode"], **CLOSE
    )
    np.testing.assert_allclose(model.decode(params, tokens), found["decoded"], **CLOSE)
    mean = kl.quantize(moments, None)[2]["kl"]  # the official one sums
    np.testing.assert_allclose(mean * found["mode"][0].size, found["kl"], rtol=1e-4)


def test_var_networks():
    found = fixture("var_autoencoder")
    config = ConvConfig(64, (1, 2), 1, (1,), 32, quant_kernel=3)
    reader = Converter(state_dict(found), "VAR")
    encoder = vqgan.convert_encoder(reader, "", config, "var", 8)
    decoder = reader.finish(vqgan.convert_decoder(reader, "", config, "var", 8))
    hidden = Encoder(config, 8).apply({"params": encoder}, found["image"])
    np.testing.assert_allclose(hidden, found["hidden"], **CLOSE)
    decoded = Decoder(config, 3).apply({"params": decoder}, found["hidden"])
    np.testing.assert_allclose(decoded, found["decoded"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("llamagen_vq", "llamagen"), ("mar_kl", "taming"), ("var_autoencoder", "var")],
)
def test_layouts_are_told_by_their_names(name, layout):
    assert vqgan.layout_of(state_dict(fixture(name))) == layout


def test_every_wrong_entry_is_named():
    state = state_dict(fixture("mar_kl"))
    del state["encoder.norm_out.bias"]
    state["decoder.extra"] = np.zeros(1, np.float32)
    state["quant_conv.bias"] = np.zeros(3, np.float32)
    state["loss.logvar"] = np.zeros((), np.float32)
    with pytest.raises(ConfigError) as error:
        vqgan.convert(state, MAR, (8, 8, 3))
    assert "missing encoder.norm_out.bias" in str(error.value)
    assert "unknown decoder.extra" in str(error.value)
    assert "quant_conv.bias is (3,) instead of (8,)" in str(error.value)
    assert "loss.logvar" not in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        (dict(multipliers=(1, 1, 2, 2, 4), attention=(4,), decoder_attention=(4,)), 71_883_403),
        (dict(multipliers=(1, 2, 2, 4), attention=(3,), decoder_attention=(3,)), 70_109_835),
    ],
    ids=["VQ-16", "VQ-8"],
)
def test_parameter_counts_of_the_released_tokenizers(sizes, count):
    sizes |= dict(width=128, blocks=2, groups=32, z_channels=256, channels=8)
    model = autoencoder.make(sections.autoencoder(**sizes, size=16384), (256, 256, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == count
    assert model.spec.grid == ((16, 16) if len(sizes["multipliers"]) == 5 else (32, 32))


def test_patchgan_of_the_official_size():
    judge = PatchGAN()
    shapes = jax.eval_shape(judge.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 2_765_633
    assert judge.logits_side(256) == 30


def test_decoding_values_and_ids_agree():
    model, params, found = llamagen()
    tokens = model.encode(params, found["image"])
    from_values = model.decode(params, Tokens(values=tokens.values))
    np.testing.assert_array_equal(from_values, model.decode(params, Tokens(ids=tokens.ids)))
