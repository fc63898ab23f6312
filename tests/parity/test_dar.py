"""D-AR's tokenizer against its official code.

Fixture: showlab/D-AR, VQModel in widths 128 (encoder, denoiser) and 64 (conditioning), depths 2, 2
and 3, 16 queries in 8 groups, 64 codes, pictures of 64 x 32 in patches of 16 and of 2, the
alignment tapped before block 2; every parameter overwritten by `official.seeded` times its gain.
Two pictures of bytes; latents before quantization, codes, conditions; pictures of 8 steps, and
every second pixel of those of 1 and 3 steps (clip_steps); of one training step with given times
(data's share, before the shift) and noise the velocity, every fourth pixel of the estimate, every
16th vector and 8th channel of the projector's output, the losses (codebook, commitment, flow, and
1 - cosine with features drawn by `official.seeded`), and gradients of their sum with half of the
last. Noise is that of NumPy's generator of seed 1.
"""

import functools
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dar as config
from nexttok.config import ConfigError
from nexttok.interop import dar as interop
from nexttok.interop.checkpoints import pick, read
from nexttok.tokenizers import criteria, dar
from nexttok.tokens import Tokens
from tests.interop.test_checkpoints import zipped
from tests.parity import official

SHAPE, GRID = (64, 32, 3), (16, 8)
NET = "diff_decoder.net"


class Provider:
    """Features that the fixture drew."""

    channels = 768

    def apply(self, params, image):
        del params
        features = 28 * official.seeded("features", (2, 128, 768))
        return jnp.asarray(features).reshape(len(image), *GRID, 768)


def make(**changes):
    section = config.tokenizer()
    section.update(
        encoder_patch=16, decoder_patch=2, encoder_width=128, condition_width=64, decoder_width=128,
        encoder_depth=2, condition_depth=2, decoder_depth=3, head_dim=64, align_weight=0.5,
        align_layer=1, align_hidden=2048,
    )  # fmt: skip
    section.bottleneck.size = 64
    section.update(changes)
    return dar.make(section, SHAPE, features=Provider())


@functools.cache
def loaded():
    """Model, converted parameters, fixture, pictures in [-1, 1], noise."""
    found, model = official.load("dar"), make()
    params = interop.convert(official.state_dict(found), model)
    noise = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
    x = found["image"].astype(np.float32) / 127.5 - 1.0
    return model, jax.tree.map(jnp.asarray, params), found, jnp.asarray(x), jnp.asarray(noise)


def test_parameters_have_the_structure_of_init():
    model, params, _, _, _ = loaded()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_latents_codes_and_conditions():
    model, params, found, x, _ = loaded()
    official.close(jax.jit(model.latents)(params, x), found["latents"])
    tokens = jax.jit(model.encode)(params, x)
    np.testing.assert_array_equal(tokens.ids, found["ids"])
    assert (found["ids"][0] != found["ids"][1]).sum() >= 8
    conditions = jax.jit(model.conditions)(params, tokens.values)
    official.close(conditions.reshape(2, 16, 64), found["conditions"])


def test_pictures_and_previews(monkeypatch):
    model, params, found, _, noise = loaded()
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    decode, tokens = jax.jit(model.decode), Tokens(ids=jnp.asarray(found["ids"]))
    full = decode(params, tokens, jax.random.key(0), jnp.asarray([16, 16]))
    official.close(full, found["generated"])
    for groups in (1, 3):
        keep = jnp.asarray([2 * groups, 16])
        mixed = decode(params, tokens, jax.random.key(0), keep)
        official.close(mixed[:1, ::2, ::2], found[f"preview{groups}"][:1])
        official.close(mixed[1], found["generated"][1])


def test_velocity_losses_and_gradients(monkeypatch):
    model, params, found, x, noise = loaded()
    levels = jnp.asarray(1.0 - found["times"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: levels)
    estimate = jnp.asarray(found["estimate"])

    def off(weights, image, guess, dtype):
        """How far the estimate is from the official one."""
        del weights, image, dtype
        worst = jnp.abs(guess[:, ::4, ::4] - estimate).max((1, 2, 3))
        return jax.lax.stop_gradient(worst / jnp.abs(estimate).max())

    monkeypatch.setattr(criteria, "perceptual", off)
    own, velocity = dar.DAR.velocity, []

    def spied(*args):
        found = own(*args)
        velocity.append(found[0])
        return found

    monkeypatch.setattr(dar.DAR, "velocity", spied)

    def total(params):
        given = params | {"features": {}}
        losses, metrics = model.loss(given, {"image": x}, jax.random.key(0))
        return losses.mean(), (metrics, velocity.pop())

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (metrics, got)), grads = run(params)
    official.close(-got, found["velocity"])
    assert float(metrics["perceptual"]) < 1e-4
    losses = [float(metrics[name]) for name in ("codebook", "commitment", "flow", "align")]
    np.testing.assert_allclose(losses, found["losses"], rtol=1e-4)
    encoder, decoder = grads["encoder"], grads["decoder"]
    trunk, condition = encoder["trunk"]["blocks"], grads["conditioner"]
    places = {
        "query_embedding.weight": encoder["registers"],
        "patchify.bias": encoder["patch_embed"]["bias"],
        "encoder_layers.0.gate1": trunk["gate1"][0],
        "encoder_layers.1.attention.q_norm.weight": trunk["attn"]["q_norm"]["scale"][1],
        "quantize.embedding.weight": grads["quantizer"]["embedding"],
        "decoder_embedding.weight": condition["positions"],
        "decoder_layers.1.gate2": condition["trunk"]["blocks"]["gate2"][1],
        f"{NET}.cond_mlp.bias": decoder["project"]["bias"],
        f"{NET}.blocks.0.time_embed.mlp.0.bias": decoder["blocks"]["time"]["fc1"]["bias"][0],
        f"{NET}.blocks.1.cond_embed.2.bias": decoder["blocks"]["group"]["fc2"]["bias"][1],
        f"{NET}.conv_in.bias": decoder["patch_embed"]["bias"],
        f"{NET}.repa_out.0.bias": grads["projector"]["fc1"]["bias"],
        f"{NET}.conv_out.bias": -decoder["to_patches"]["bias"].reshape(4, 3).T.ravel(),
    }
    assert {f"grad/{name}" for name in places} == {k for k in found if k.startswith("grad/")}
    for name, value in places.items():
        official.close(value, found[f"grad/{name}"])


def test_wrong_entries_are_named():
    model, params, found, _, _ = loaded()
    state = official.state_dict(found)
    unaligned = interop.convert(state, make(align_weight=0.0))
    assert set(params) - set(unaligned) == {"projector"}
    del state[f"{NET}.blocks.2.cond_embed.2.bias"]
    state |= {"extra": np.zeros(1, np.float32), "decoder_layers.0.gate1": np.zeros(5, np.float32)}
    with pytest.raises(ConfigError) as error:
        interop.convert(state, model)
    for said in (
        f"missing {NET}.blocks.2.cond_embed.2.bias",
        "unknown extra",
        "decoder_layers.0.gate1 is (5,) instead of (64,)",
    ):
        assert said in str(error.value)


def test_a_file_that_holds_its_config_is_read(tmp_path, monkeypatch):
    module = types.ModuleType("config_util")
    module.Config = type("Config", (), {"__module__": "config_util"})
    monkeypatch.setitem(sys.modules, "config_util", module)
    made = module.Config()
    made._data = {"model": {"vq_dim": 8}}
    plain = pickle.dumps({"config": made, "ema": {}}, protocol=2)
    found = read(str(zipped(tmp_path / "released.pt", plain)))
    assert found["config"]._data == made._data
    state = {"ema": {"w": np.ones(1)}, "model": {"w": np.zeros(1)}}
    np.testing.assert_array_equal(pick(state, "ema", "model")["w"], 1.0)
