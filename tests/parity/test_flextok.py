"""FlexTok against its official code.

Fixture: apple/ml-flextok, the modules of the released tokenizers in their order (encoder, FSQ,
MinRFNoiseModule, decoder, MinRFPipeline, StableDiffusionVAE over diffusers' AutoencoderKL) at
widths 32 and 48, depths 2 and 3, heads of 16, 8 registers of levels 8, 8, 5, 5 and 8 x 8 latents of
4 channels, with PyTorch's attention instead of compiled FlexAttention, every parameter overwritten
by `official.seeded`. Generation is `FlexTok.decode` of prefixes of the encoded tokens with 5 Euler
steps; the training step is `FlexTok.forward` in training mode, its draws written down, and the mean
squared error to noise - latents. The projector is the official MLPHead of three layers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import flextok as config
from nexttok import experiment, importing
from nexttok.bottlenecks import fsq
from nexttok.checkpoint import restore_params
from nexttok.config import ConfigError
from nexttok.experiment import TRAINING_ONLY
from nexttok.interop import flextok as interop
from nexttok.main import load_config
from nexttok.nn.flextok import Projector
from nexttok.stages import abstract_params
from nexttok.tokenizers import autoencoder, flextok, nested
from nexttok.tokens import Tokens
from tests.parity import official
from tests.tokenizers import sections as small

SIZES = dict(
    registers=8, levels=(8, 8, 5, 5), patch=2, positions="rows", encoder_width=32, encoder_depth=2,
    decoder_width=48, decoder_depth=3, head_dim=16, flow_steps=5,
)  # fmt: skip
LATENT = dict(attention=(), scaling_factor=0.7, sample_posterior=False)
ENCODER, DECODER = "encoder.module_dict.enc_", "decoder.module_dict.dec_"


def sections():
    """Config sections (latent, tokenizer) of the fixture."""
    latent = small.autoencoder(small.KL, **LATENT)
    tokenizer = config.tokenizer()
    tokenizer.update(SIZES)
    return latent, tokenizer


@functools.cache
def fixture():
    return official.load("flextok")


def state():
    """Entries as in a released file, the fixed position tables among them."""
    tables = {k.removeprefix("posembs/"): v for k, v in fixture().items() if "posembs/" in k}
    return official.state_dict(fixture()) | tables


@functools.cache
def built():
    """The tokenizer and its parameters, the autoencoder's included."""
    latent, tokenizer = sections()
    latent = autoencoder.make(latent, (16, 16, 3), where="latent")
    model = flextok.make(tokenizer, (16, 16, 3), latent=latent)
    params = interop.convert(state(), model) | {"latent": interop.convert_vae(state(), latent)}
    return model, jax.tree.map(jnp.asarray, params)


def arrays(*names):
    return [jnp.asarray(fixture()[name]) for name in names]


def test_converted_parameters_have_the_structure_of_init():
    model, params = built()
    expected = jax.eval_shape(model.init, jax.random.key(0))
    expected |= {"latent": jax.eval_shape(model.latent.init, jax.random.key(0))}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


def test_autoencoder():
    model, params = built()
    image, latents = arrays("image", "latents")
    moments = model.latent.encoder.apply({"params": params["latent"]["encoder"]}, image)
    official.close(moments, fixture()["moments"])
    official.close(model.latents(params, image, None), latents)
    generated = fixture()["generated_apg"].reshape(3, 64, 4)
    pictures = model.latent.decode(params["latent"], Tokens(values=jnp.asarray(generated)))
    official.close(pictures, fixture()["picture_apg"])


def test_registers_before_and_after_quantization():
    model, params = built()
    before = model.encoder.apply({"params": params["encoder"]}, *arrays("latents"))
    official.close(before, fixture()["before"])
    tokens = model.encode(params, *arrays("image"))
    np.testing.assert_array_equal(tokens.ids, fixture()["ids"])
    official.close(tokens.values, fixture()["values"], 1e-6)
    official.close(fsq.ids_to_values(*arrays("ids"), model.levels), fixture()["values"], 1e-6)


def test_velocity_of_prefixes_and_null_examples():
    model, params = built()
    values, keep, null, noise, times = arrays("values", "keep", "null", "noise", "times")
    run = jax.jit(functools.partial(model.velocity, tap=1))
    velocity, tapped = run(params, values, keep, null, noise, times)
    official.close(velocity, fixture()["velocity"])
    official.close(tapped, fixture()["tapped"])


@pytest.mark.parametrize(
    ("name", "scale", "rule"), [("plain", 1.0, "cfg"), ("cfg", 3.0, "cfg"), ("apg", 7.5, "apg")]
)
def test_generation_of_latents(name, scale, rule, monkeypatch):
    model, params = built()
    guided = dataclasses.replace(
        model, image_shape=(8, 8, 4), latent=None, guidance=scale, guidance_rule=rule
    )
    ids, keep, noise = arrays("ids", "keep", "noise")
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    out = jax.jit(guided.decode)(params, Tokens(ids=ids), jax.random.key(0), keep)
    official.close(out, fixture()[f"generated_{name}"])


def test_generated_pictures(monkeypatch):
    model, params = built()
    ids, keep, noise = arrays("ids", "keep", "noise")
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    guided = dataclasses.replace(model, guidance=7.5, guidance_rule="apg")
    out = jax.jit(guided.decode)(params, Tokens(ids=ids), jax.random.key(0), keep)
    official.close(out, fixture()["picture_apg"])


def test_training_loss_and_its_gradients(monkeypatch):
    model, params = built()
    image, noise, u, null, keep = arrays("image", "noise", "u", "train_null", "train_keep")
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: u)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: null)
    monkeypatch.setattr(nested, "sample_keep", lambda *_: keep)

    def total(params):
        losses = model.loss(params, {"image": image}, jax.random.key(0))[0]
        return losses.mean(), losses

    (_, losses), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    official.close(losses, fixture()["loss"])
    encoder, decoder = grads["encoder"], grads["decoder"]
    places = {
        f"{ENCODER}register_module.registers": encoder["registers"],
        f"{ENCODER}to_latents.proj.weight": encoder["to_latents"]["kernel"].T,
        f"{ENCODER}patch_emb.patch_proj.weight": encoder["patch_embed"]["kernel"].T,
        f"{DECODER}nested_dropout.dropout_mask_token": decoder["mask_token"][0],
        f"{DECODER}latent_dropout.nullcond": decoder["null_token"][0],
        f"{DECODER}time_embedder.mlp.0.bias": decoder["time1"]["bias"],
        f"{DECODER}registers_posemb_module.posembs": decoder["positions"].T[None, None],
    }
    assert {f"grad/{name}" for name in places} == {k for k in fixture() if k.startswith("grad/")}
    for name, got in places.items():
        official.close(got, fixture()[f"grad/{name}"])


def test_projector_of_the_alignment_loss():
    layers = {"mlp.1": "fc1", "mlp.3": "fc2", "out_proj": "out"}
    params = {ours: {} for ours in layers.values()}
    for key in (k.removeprefix("head/") for k in fixture() if k.startswith("head/")):
        layer, _, part = key.rpartition(".")
        drawn = official.seeded(f"head.{key}", tuple(fixture()[f"head/{key}"]))
        params[layers[layer]]["kernel" if part == "weight" else part] = jnp.asarray(drawn.T)
    out = Projector(6).apply({"params": params}, *arrays("head_in"))
    official.close(out, fixture()["head_out"])


def test_every_wrong_entry_is_named():
    model, _ = built()
    bad = state() | {"encoder.extra": np.zeros(1, np.float32)}
    bad[f"{ENCODER}to_latents.proj.bias"] = np.zeros(5, np.float32)
    bad[f"{DECODER}patches_posemb_module.posembs"] = np.zeros((1, 48, 4, 4), np.float32)
    del bad[f"{DECODER}transformer.blocks.2.mlp.fc3.weight"]
    with pytest.raises(ConfigError) as error:
        interop.convert(bad, model)
    for said in (
        "unknown encoder.extra",
        "enc_to_latents.proj.bias is (5,) instead of (4,)",
        "missing decoder.module_dict.dec_transformer.blocks.2.mlp.fc3.weight",
        "dec_patches_posemb_module.posembs is not config.tokenizer.positions = 'rows'",
    ):
        assert said in str(error.value)
    with pytest.raises(ConfigError, match=r"enc_posemb_module\.posembs is not config"):
        interop.convert(state(), dataclasses.replace(model, positions="columns"))


def test_the_autoencoders_own_file_and_its_wrong_entries():
    model, params = built()
    alone = {k.removeprefix("vae.vae."): v for k, v in state().items() if k.startswith("vae.")}
    again = interop.convert_vae(alone, model.latent)
    jax.tree.map(np.testing.assert_array_equal, again, params["latent"])
    alone["decoder.mid_block.attentions.0.to_q.weight"] = np.zeros((3, 3), np.float32)
    alone["loss.logvar"] = np.zeros((), np.float32)
    del alone["decoder.up_blocks.0.upsamplers.0.conv.bias"]
    with pytest.raises(ConfigError) as error:
        interop.convert_vae(alone, model.latent)
    for said in (
        "unknown loss.logvar",
        "missing decoder.up_blocks.0.upsamplers.0.conv.bias",
        "decoder.mid_block.attentions.0.to_q.weight is (3, 3) instead of (16, 16)",
    ):
        assert said in str(error.value)
    with pytest.raises(ConfigError, match=r"config\.latent = None"):
        interop.convert_vae(alone, None)


def test_one_released_file_fills_two_stages(tmp_path):
    settings = load_config("configs/flextok.py:photos")
    settings.data.resolution = 16
    settings.latent, settings.tokenizer = sections()
    settings.features.update(name="dinov2", preset="small")
    settings.tokenizer.align_weight = 1.0
    exp = experiment.resolve(settings)
    file, out = tmp_path / "model.safetensors", tmp_path / "run"
    save_file({k: np.ascontiguousarray(v) for k, v in state().items()}, file)
    for system, stage in (("flextok", "tokenizer"), ("flextok_vae", "latent")):
        made = importing.import_checkpoints({system: str(file)}, {"photos": exp}, str(out))
        abstract = abstract_params(exp, stage)
        which = "ema" if exp.train[stage].ema else "params"
        params = restore_params(made.directories[0], abstract, which, TRAINING_ONLY)
        sampled = {k: v for k, v in abstract.items() if k not in TRAINING_ONLY}
        assert made.parameters == sum(x.size for x in jax.tree.leaves(sampled))
        assert jax.tree.structure(params) == jax.tree.structure(sampled)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["latent", "tokenizer"]
