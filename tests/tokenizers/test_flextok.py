"""FlexTok's own claims, at toy size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flextok as config
from nexttok.config import ConfigError
from nexttok.nn.flextok import patch_positions
from nexttok.nn.vit import FeatureEncoder, ViTConfig
from nexttok.tokenizers import autoencoder, flextok, nested
from nexttok.tokens import Tokens
from tests.tokenizers import sections

SHAPE = (8, 8, 1)


def make(shape=SHAPE, latent=None, features=None, **changes):
    section = config.tokenizer()
    section.update(
        registers=8, levels=(5, 5, 5), patch=2, encoder_width=16, encoder_depth=2, decoder_width=16,
        decoder_depth=2, head_dim=8, flow_steps=3, guidance=1.0,
    )  # fmt: skip
    section.update(changes)
    return flextok.make(section, shape, latent=latent, features=features)


def randomized(params, seed=0, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def compiled_grad(f):
    return jax.jit(jax.grad(f))


TOKENIZER = make()
PARAMS = randomized(jax.jit(TOKENIZER.init)(jax.random.key(0)))
IMAGES = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1, maxval=1)
DECODE = jax.jit(TOKENIZER.decode)
LOSS = jax.jit(TOKENIZER.loss)
VELOCITY = jax.jit(TOKENIZER.velocity)


def test_shapes_and_range():
    tokens = TOKENIZER.encode(PARAMS, IMAGES)
    assert tokens.ids.shape == (3, 8)
    assert tokens.ids.dtype == jnp.int32
    assert TOKENIZER.spec.vocab == 125
    assert TOKENIZER.spec.nested
    assert len(np.unique(np.asarray(tokens.ids))) > 3
    assert DECODE(PARAMS, tokens, jax.random.key(2)).shape == IMAGES.shape


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_decoding_k_tokens_never_depends_on_later_ones(keep):
    a = jax.random.randint(jax.random.key(3), (3, 8), 0, 125, jnp.int32)
    b = jnp.where(jnp.arange(8)[None] < keep, a, (a + 17) % 125)
    kept = jnp.full((3,), keep, jnp.int32)
    key = jax.random.key(4)
    one, two = (DECODE(PARAMS, Tokens(ids=ids), key, kept) for ids in (a, b))
    np.testing.assert_array_equal(one, two)
    short = DECODE(PARAMS, Tokens(ids=a[:, :keep]), key)
    np.testing.assert_allclose(one, short, atol=1e-5)
    first = jnp.asarray(a).at[:, 0].set((a[:, 0] + 17) % 125)
    assert float(jnp.abs(DECODE(PARAMS, Tokens(ids=first), key, kept) - one).max()) > 1e-4


def test_patch_positions_hold_one_coordinate_per_half():
    columns, rows = (patch_positions((2, 3), 8, first).reshape(2, 3, 8) for first in flextok.AXES)
    np.testing.assert_array_equal(columns[..., :4], np.repeat(columns[:1, :, :4], 2, 0))
    np.testing.assert_array_equal(rows[..., :4], np.repeat(rows[:, :1, :4], 3, 1))
    np.testing.assert_array_equal(rows[..., 4:], columns[..., :4])


def test_decoding_ids_and_values_agree():
    tokens = TOKENIZER.encode(PARAMS, IMAGES)
    key = jax.random.key(5)
    np.testing.assert_allclose(
        DECODE(PARAMS, Tokens(ids=tokens.ids), key),
        DECODE(PARAMS, Tokens(values=tokens.values), key),
        atol=1e-5,
    )


def test_register_i_ignores_the_registers_after_it():
    few = make(registers=4)
    encoder = PARAMS["encoder"]
    shorter = PARAMS | {"encoder": encoder | {"registers": encoder["registers"][:4]}}
    np.testing.assert_array_equal(
        TOKENIZER.encode(PARAMS, IMAGES).ids[:, :4], few.encode(shorter, IMAGES).ids
    )


def test_zero_initialized_head_gives_zero_velocity_and_the_loss_of_v():
    params = jax.jit(TOKENIZER.init)(jax.random.key(0))
    values = jnp.zeros((3, 8, 3))
    velocity, _ = VELOCITY(
        params, values, jnp.full((3,), 8), jnp.zeros((3,), bool), IMAGES, jnp.full((3,), 0.5)
    )
    assert float(jnp.abs(velocity).max()) == 0.0
    loss, metrics = LOSS(params, {"image": jnp.zeros((256, *SHAPE))}, jax.random.key(1))
    assert float(loss.mean()) == pytest.approx(1.0, abs=0.05)  # E e^2 at x = 0
    assert float(metrics["flow"]) == pytest.approx(float(loss.mean()))


def test_null_examples_ignore_every_token():
    a, b = jax.random.normal(jax.random.key(6), (2, 3, 8, 3))
    args = (jnp.full((3,), 8), jnp.ones((3,), bool), IMAGES, jnp.full((3,), 0.3))
    np.testing.assert_array_equal(VELOCITY(PARAMS, a, *args)[0], VELOCITY(PARAMS, b, *args)[0])


def test_videos_and_bfloat16():
    with pytest.raises(ConfigError, match=r"data\.frames = 4: expected 0"):
        make((4, 8, 8, 1))
    half = dataclasses.replace(TOKENIZER, dtype="bfloat16")
    loss, _ = jax.jit(half.loss)(PARAMS, {"image": IMAGES}, jax.random.key(3))
    full, _ = LOSS(PARAMS, {"image": IMAGES}, jax.random.key(3))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, full, rtol=0.2)


def test_guided_decoding_differs_and_apg_runs():
    tokens = TOKENIZER.encode(PARAMS, IMAGES)
    key = jax.random.key(7)
    outs = [
        jax.jit(dataclasses.replace(TOKENIZER, guidance=g, guidance_rule=rule).decode)(
            PARAMS, tokens, key
        )
        for g, rule in ((1.0, "cfg"), (2.0, "cfg"), (2.0, "apg"))
    ]
    assert float(jnp.abs(outs[0] - outs[1]).max()) > 1e-4
    assert float(jnp.abs(outs[1] - outs[2]).max()) > 1e-4


def test_gradients_reach_encoder_through_the_bottleneck():
    grads = compiled_grad(
        lambda p: TOKENIZER.loss(p, {"image": IMAGES}, jax.random.key(8))[0].mean()
    )(PARAMS)
    for part in ("encoder", "decoder"):
        assert float(jnp.abs(grads[part]["patch_embed"]["kernel"]).max()) > 1e-8


@pytest.mark.parametrize("mode", nested.MODES)
def test_nested_dropout_laws(mode):
    keep = np.asarray(nested.sample_keep(jax.random.key(0), 40000, 16, mode))
    share = np.bincount(keep, minlength=17)[1:] / 40000
    powers = np.asarray([1, 2, 4, 8, 16])
    expected = np.zeros(16)
    if mode == "uniform":
        expected[:] = 1 / 16
    elif mode == "pow2":
        expected[powers - 1] = 1 / 5
    else:
        expected[powers - 1] = [1 / 16, 1 / 16, 2 / 16, 4 / 16, 8 / 16]
    assert np.abs(share - expected).sum() < 0.03


@pytest.mark.slow
def test_latents_of_a_frozen_autoencoder_are_tokenized():
    latent = autoencoder.make(sections.autoencoder(sections.KL), (16, 16, 3), where="latent")
    tokenizer = make((16, 16, 3), latent=latent)
    assert tokenizer.latent_shape == (8, 8, 4)
    params = jax.jit(tokenizer.init)(jax.random.key(0)) | {
        "latent": jax.jit(latent.init)(jax.random.key(1))
    }
    image = jnp.zeros((2, 16, 16, 3))
    tokens = jax.jit(tokenizer.encode)(params, image)
    assert jax.jit(tokenizer.decode)(params, tokens, jax.random.key(2)).shape == image.shape
    grads = compiled_grad(
        lambda p: tokenizer.loss(p, {"image": image}, jax.random.key(3))[0].mean()
    )(params)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads["latent"]))


@pytest.mark.slow
def test_alignment_loss_pulls_decoder_features_to_the_provider():
    provider = FeatureEncoder(ViTConfig(16, 1, 8, patch=4, side=8, stored_grid=2))
    tokenizer = make(features=provider, align_weight=1.0, align_layer=0)
    frozen = {"features": jax.jit(provider.init)(jax.random.key(9))}
    params = jax.jit(tokenizer.init)(jax.random.key(0))
    loss, metrics = jax.jit(tokenizer.loss)(params | frozen, {"image": IMAGES}, jax.random.key(1))
    assert 0.0 <= float(metrics["align"]) <= 2.0
    assert float(loss.mean()) == pytest.approx(float(metrics["flow"] + metrics["align"]), rel=1e-5)
    grads = compiled_grad(
        lambda p: tokenizer.loss(p | frozen, {"image": IMAGES}, jax.random.key(1))[1]["align"]
    )(randomized(params))
    assert float(jnp.abs(grads["projector"]["out"]["kernel"]).max()) > 0
    assert float(jnp.abs(grads["decoder"]["patch_embed"]["kernel"]).max()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch=3), r"tokenizer\.patch = 3: expected a divisor of the latent side 8"),
        (dict(positions="row"), r"tokenizer\.positions = 'row': expected columns \| rows"),
        (dict(keep="pow2", registers=6), r"tokenizer\.keep = 'pow2': expected uniform"),
        (dict(levels=(5, 1)), r"tokenizer\.levels"),
        (dict(encoder_width=20), r"tokenizer\.encoder_width = 20"),
        (dict(guidance=2.0, null_probability=0.0), r"tokenizer\.guidance = 2\.0: expected 1"),
        (dict(solver="rk4"), r"tokenizer\.solver = 'rk4': expected euler \| heun"),
        (dict(align_weight=1.0), r"tokenizer\.align_weight"),
        (dict(register=4), r"tokenizer\.register = 4: unknown key \(did you mean 'registers'\?\)"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make(**change)
