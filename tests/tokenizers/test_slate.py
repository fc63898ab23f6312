"""SLATE's claims, and what its parts promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import slate as config
from configs import tokenizers
from nexttok.bottlenecks import gumbel
from nexttok.config import ConfigError
from nexttok.tokenizers import autoencoder, slate
from nexttok.tokens import Tokens

SHAPE = (16, 16, 1)


def section():
    found = config.slate(config.dvae(channels=8, size=16), 3, width=16, depth=2, head_dim=8)
    for part in ("encoder", "decoder"):
        found.dvae[part].update(width=8, mixes=1)
    found.slots.update(width=12, heads=2)
    return found


@functools.cache
def model():
    return slate.make(section(), SHAPE)


@functools.cache
def initial():
    """Parameters whose logits differ."""
    params = jax.jit(model().init)(jax.random.key(0))
    params["predictor"]["logits"]["kernel"] *= 8.0
    return params


@functools.cache
def pictures():
    return jax.random.uniform(jax.random.key(1), (4, *SHAPE), minval=-1.0)


@functools.cache
def codes():
    return jax.random.randint(jax.random.key(2), (4, 16), 0, 16, jnp.int32)


surprise = functools.cache(lambda: jax.jit(model().surprise))


def test_tokens_are_continuous_slots_in_no_grid_of_pixels():
    spec = model().spec
    assert (spec.grid, spec.vocab, spec.channels, spec.nested) == ((3,), 0, 12, False)
    assert model().dvae.spec.grid == (4, 4)
    encode = jax.jit(model().encode)
    tokens = encode(initial(), pictures())
    assert tokens.ids is None
    assert tokens.values.shape == (4, 3, 12)
    backward = encode(initial(), pictures()[::-1]).values[::-1]
    np.testing.assert_allclose(backward, tokens.values, atol=1e-5)
    other = encode(initial(), pictures(), jax.random.key(3)).values
    assert float(jnp.abs(other - tokens.values).max()) > 1e-3


def test_the_order_of_slots_changes_no_prediction():
    noise = model().noise(jax.random.key(4), 4)
    nats = surprise()(initial(), codes(), noise)
    turned = surprise()(initial(), codes(), noise[:, jnp.asarray([2, 0, 1])])
    np.testing.assert_allclose(turned, nats, rtol=1e-4)
    other = surprise()(initial(), codes(), -noise)
    assert float(jnp.abs(other - nats).max()) > 1e-3


def test_slots_share_every_pixel():
    masks = jax.jit(model().masks)(initial(), pictures())
    assert masks.shape == (4, 3, 16, 16)
    np.testing.assert_allclose(masks.sum(1), 1.0, rtol=1e-5)
    cells = np.asarray(masks).reshape(4, 3, 4, 4, 4, 4)
    assert np.ptp(cells, axis=(3, 5)).max() == 0.0  # a cell of 4 x 4 pixels is one code
    assert float(masks.std()) > 1e-3


def test_predictions_see_earlier_codes_alone():
    noise = model().noise(None, 4)
    base = jax.jit(lambda p, ids, slots: model().logits(p, model().embed(p, ids)[:, :-1], slots))
    slots = jax.random.normal(jax.random.key(5), noise.shape)
    logits = base(initial(), codes(), slots)
    changed = base(initial(), codes().at[:, 6].add(1) % 16, slots)
    moved = np.abs(np.asarray(changed - logits)).max((0, 2))
    assert moved[:7].max() == 0.0
    assert moved[7:].min() > 0.0


def test_greedy_codes_are_the_likeliest_of_teacher_forcing():
    slots = 3.0 * jax.random.normal(jax.random.key(6), (4, 3, 12))
    ids = jax.jit(model().generate)(initial(), slots)
    assert ids.shape == (4, 16)
    assert len(np.unique(ids)) > 2

    @jax.jit
    def forced(params, ids):
        return model().logits(params, model().embed(params, ids)[:, :-1], slots)

    np.testing.assert_array_equal(forced(initial(), ids).argmax(-1), ids)
    turned = jax.jit(model().generate)(initial(), slots[:, ::-1])
    np.testing.assert_array_equal(turned, ids)
    made = jax.jit(model().decode)(initial(), Tokens(values=slots))
    np.testing.assert_allclose(
        made, jax.jit(model().dvae.decode)(initial(), Tokens(ids=ids)), atol=1e-5
    )


def test_released_sizes_trace_in_bfloat16():
    found = config.get_config("shapes3d")
    made = slate.make(found.tokenizer, (64, 64, 3), found.dtype)
    params = jax.eval_shape(made.init, jax.random.key(0))
    x, key = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32), jax.random.key(1)
    loss, metrics = jax.eval_shape(lambda p, x: made.loss(p, {"image": x}, key), params, x)
    assert (loss.shape, loss.dtype) == ((2,), jnp.float32)
    assert "temperature" in metrics
    drawn = jax.eval_shape(lambda p, x: made.decode(p, made.encode(p, x)), params, x)
    assert (drawn.shape, drawn.dtype) == (x.shape, jnp.float32)


def test_output_layers_start_smaller_by_the_root_of_their_number():
    """Two layers of self-attention, cross-attention and MLP: six."""
    blocks = initial()["predictor"]["trunk"]["blocks"]
    for name in ("attn", "cross"):
        bound = np.sqrt(6 / (16 + 16))
        assert 0.9 * bound < float(jnp.abs(blocks[name]["wq"]["kernel"]).max()) < bound
        gained = float(jnp.abs(blocks[name]["proj"]["kernel"]).max()) * np.sqrt(6)
        assert 0.9 * bound < gained < bound * (1 + 1e-5)


@functools.cache
def lesson():
    """Loss, metrics, and the gradients of two of these."""

    @jax.jit
    def run(params):
        def loss(params, name=""):
            total, metrics = model().loss(params, {"image": pictures()}, jax.random.key(7))
            return metrics[name] if name else (total, metrics)

        names = ("cross_entropy", "fidelity")
        return *loss(params), {name: jax.grad(loss)(params, name) for name in names}

    return run(initial())


@pytest.mark.slow
def test_each_loss_trains_its_own_parameters():
    """The cross-entropy leaves the discrete VAE alone, and pixels the slots."""
    dvae = {"encoder", "decoder", "quantizer"}
    for name, trained in (("cross_entropy", set(initial()) - dvae), ("fidelity", dvae)):
        sizes = {
            jax.tree_util.keystr(path): float(jnp.abs(g).max())
            for path, g in jax.tree_util.tree_leaves_with_path(lesson()[2][name])
        }
        reached = {path for path, size in sizes.items() if size > 0}
        mine = {path for path in sizes if path.split("'")[1] in trained}
        assert reached == mine - {"['quantizer']['seen']"}


def test_the_loss_is_both_and_counts_steps():
    total, metrics, _ = lesson()
    assert total.shape == (4,)
    both = metrics["fidelity"] + metrics["cross_entropy"]
    np.testing.assert_allclose(total.mean(), both, rtol=1e-5)
    assert float(metrics["moves"]["quantizer"]["seen"]) == 1.0


def test_measures_are_those_of_the_discrete_vae_and_of_the_predictor():
    found = jax.jit(model().measures)(initial(), pictures())
    ids = jax.jit(model().dvae.encode)(initial(), pictures()).ids
    made = np.clip(jax.jit(model().dvae.decode)(initial(), Tokens(ids=ids)), -1, 1)
    mse = np.square(made - np.asarray(pictures())).mean((1, 2, 3))
    np.testing.assert_allclose(found["dvae_psnr"], 10 * np.log10(4 / mse), rtol=1e-4)
    nats = surprise()(initial(), ids, model().noise(None, 4)).mean(-1)
    np.testing.assert_allclose(found["cross_entropy"], nats, rtol=1e-4)


def test_a_cold_mixture_is_the_argmax_of_perturbed_logits():
    logits = jax.random.normal(jax.random.key(9), (50, 12))
    noise = jax.random.gumbel(jax.random.key(10), logits.shape)
    best = np.asarray(logits + noise).argmax(-1)
    cold, ids = gumbel.mixture(logits, noise, 1e-4)
    np.testing.assert_array_equal(ids, best)
    np.testing.assert_allclose(cold, np.eye(12)[best], atol=1e-3)
    soft, _ = gumbel.mixture(logits, noise, 1.0)
    np.testing.assert_allclose(soft.sum(-1), 1.0, rtol=1e-5)
    assert float(soft.max(-1).min()) < 0.9


def test_a_hard_mixture_is_one_code_with_the_gradient_of_the_soft():
    logits = jax.random.normal(jax.random.key(9), (50, 12))
    noise, rows = (jax.random.gumbel(jax.random.key(10 + i), logits.shape) for i in range(2))
    hard, ids = gumbel.mixture(logits, noise, 0.7, True)
    np.testing.assert_allclose(hard, np.eye(12)[np.asarray(ids)], atol=1e-6)
    np.testing.assert_allclose(hard.sum(-1), 1.0, rtol=1e-6)
    slope = lambda hard: jax.grad(lambda z: (rows * gumbel.mixture(z, noise, 0.7, hard)[0]).sum())(
        logits
    )
    np.testing.assert_allclose(slope(True), slope(False), atol=1e-6)


def test_drawn_codes_have_the_posterior_at_any_temperature():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
    many = jnp.broadcast_to(logits, (20_000, 3))
    for temperature in (0.1, 1.0):
        noise = jax.random.gumbel(jax.random.key(12), many.shape)
        _, ids = gumbel.mixture(many, noise, temperature)
        np.testing.assert_allclose(np.bincount(ids, minlength=3) / 20_000, [0.5, 0.3, 0.2],
                                   atol=0.02)  # fmt: skip


def test_temperature_falls_by_half_a_cosine():
    at = lambda step: float(gumbel.cooled(jnp.asarray(float(step)), 1.0, 0.1, 100))
    np.testing.assert_allclose([at(0), at(25), at(50), at(100), at(10_000)],
                               [1.0, 0.1 + 0.45 * (1 + np.sqrt(0.5)), 0.55, 0.1, 0.1],
                               rtol=1e-5)  # fmt: skip


def test_divergence_to_the_uniform_distribution():
    np.testing.assert_allclose(gumbel.to_uniform(jnp.zeros((2, 8))), 0.0, atol=1e-6)
    sure = jnp.zeros(8).at[3].set(100.0)
    np.testing.assert_allclose(gumbel.to_uniform(sure), np.log(8), rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("slots", dict(count=0), r"tokenizer\.slots\.count = 0: expected at least 1"),
        ("slots", dict(heads=5), r"slots\.heads = 5: expected a divisor of the width 12"),
        ("predictor", dict(head_dim=5), r"predictor\.head_dim = 5: expected a divisor of"),
        ("predictor", dict(dropout=1.0), r"predictor\.dropout = 1\.0"),
        ("dvae", dict(name="slate"), r"tokenizer\.dvae\.name = 'slate': expected autoencoder"),
    ],
)
def test_bad_sections_are_refused(part, changes, message):
    found = section()
    found[part].update(changes)
    with pytest.raises(ConfigError, match=message):
        slate.make(found, SHAPE)


def test_latents_without_codes_are_refused():
    found = section()
    found.dvae = tokenizers.kl()
    with pytest.raises(ConfigError, match=r"dvae\.bottleneck = 'KL': expected a bottleneck of one"):
        slate.make(found, SHAPE)


def test_the_networks_refuse_pictures_they_cannot_cut():
    with pytest.raises(ConfigError, match=r"data\.resolution = 18: expected a multiple of 4"):
        autoencoder.make(section().dvae, (18, 18, 1))
