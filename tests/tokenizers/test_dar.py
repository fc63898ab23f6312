"""D-AR's own claims, at toy size."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dar as config
from nexttok import evaluate, experiment
from nexttok.bottlenecks import vq
from nexttok.config import ConfigError
from nexttok.main import load_config
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.rng import stream
from nexttok.tokenizers import criteria, dar
from nexttok.tokens import Tokens
from tests.tokenizers.test_flextok import randomized

SHAPE = (8, 8, 1)


def make(shape=SHAPE, features=None, latent=None, bottleneck=None, **changes):
    section = config.tokenizer()
    section.update(
        queries=8, groups=4, encoder_patch=4, encoder_width=16, encoder_depth=2, condition_width=16,
        condition_depth=1, decoder_patch=2, decoder_width=16, decoder_depth=2, head_dim=8,
        flow_steps=4, align_layer=0, align_hidden=16,
    )  # fmt: skip
    section.bottleneck.update(channels=4, size=32)
    section.bottleneck.update(bottleneck or {})
    section.update(changes)
    return dar.make(section, shape, features=features, latent=latent)


TOKENIZER = make()
FRESH = jax.jit(TOKENIZER.init)(jax.random.key(0))
PARAMS = randomized(FRESH)
IMAGES = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1, maxval=1)
IDS = jax.random.randint(jax.random.key(3), (3, 8), 0, 32, jnp.int32)
ENCODE = jax.jit(TOKENIZER.encode)
DECODE = jax.jit(TOKENIZER.decode)
LOSS = jax.jit(TOKENIZER.loss)
CONDITIONS = jax.jit(TOKENIZER.conditions)


def values_of(ids):
    return vq.ids_to_values(ids, PARAMS["quantizer"]["embedding"], True)


def test_shapes_range_and_place():
    tokens = ENCODE(PARAMS, IMAGES)
    assert tokens.ids.shape == (3, 8)
    assert tokens.ids.dtype == jnp.int32
    assert TOKENIZER.spec.prefixes == (2, 4, 8)
    assert len(np.unique(np.asarray(tokens.ids))) > 3
    assert DECODE(PARAMS, tokens, jax.random.key(2)).shape == IMAGES.shape
    param_shardings(make_mesh(MeshConfig(-1, 1, 1, 1, 1)), PARAMS)


def test_a_code_ignores_the_queries_after_it():
    few = make(queries=4, groups=2)
    encoder = PARAMS["encoder"]
    shorter = PARAMS | {"encoder": encoder | {"registers": encoder["registers"][:4]}}
    ids = ENCODE(PARAMS, IMAGES).ids
    np.testing.assert_array_equal(ids[:, :4], jax.jit(few.encode)(shorter, IMAGES).ids)
    swapped = encoder | {"registers": encoder["registers"][::-1]}
    assert (ENCODE(PARAMS | {"encoder": swapped}, IMAGES).ids != ids).any()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_conditions_of_groups_see_no_later_ids(groups):
    later = IDS.at[:, 2 * groups :].add(7) % 32
    a, b = (np.asarray(CONDITIONS(PARAMS, values_of(ids))) for ids in (IDS, later))
    np.testing.assert_array_equal(a[:, :groups], b[:, :groups])
    assert (np.abs(a - b)[:, groups:].max((0, 2, 3)) > 1e-3).all()


def test_previews_are_the_estimates_of_the_denoising_steps():
    """Every prefix against a loop over the same steps, each with one group's conditions."""
    noise_key = jax.random.key(4)
    whole = DECODE(PARAMS, Tokens(ids=IDS), noise_key)
    velocity = jax.jit(lambda group, x, s: TOKENIZER.velocity(PARAMS, group, x, s)[0])
    conditions, times = CONDITIONS(PARAMS, values_of(IDS)), TOKENIZER.schedule[0]
    x, before = noise_of(noise_key), None
    for step in range(4):
        v = velocity(conditions[:, step], x, jnp.full(3, times[step], jnp.float32))
        slope = v if before is None else 1.5 * v - 0.5 * before
        keep = jnp.asarray([2 * step + 2, 8, 2 * step + 2])
        preview = DECODE(PARAMS, Tokens(ids=IDS), noise_key, keep)
        estimate = (x - float(times[step]) * slope) / 0.6
        np.testing.assert_allclose(preview[0], estimate[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(preview[1], whole[1], atol=1e-5)
        x, before = x - float(times[step] - times[step + 1]) * slope, v
    np.testing.assert_allclose(whole, x / 0.6, rtol=1e-3, atol=1e-4)


def noise_of(key):
    """What decoding starts from."""
    return jax.random.normal(stream(key, "noise"), IMAGES.shape)


def test_a_zero_initialized_head_leaves_the_noise():
    key = jax.random.key(5)
    drawn = DECODE(FRESH, Tokens(ids=IDS), key)
    np.testing.assert_allclose(drawn, noise_of(key) / 0.6, rtol=1e-5)
    loss, metrics = LOSS(FRESH, {"image": IMAGES}, key)
    target = (noise_of(key) - 0.6 * IMAGES) / 0.6
    assert float(metrics["flow"]) == pytest.approx(float((target**2).mean()), rel=1e-5)
    extra = 0.5 * metrics["perceptual"] + metrics["codebook"] + metrics["commitment"]
    assert float(loss.mean()) == pytest.approx(float(metrics["flow"] + extra), rel=1e-5)


@pytest.mark.parametrize(("keep", "groups"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_groups_past_those_kept_are_never_read(keep, groups):
    other = IDS.at[:, 2 * groups :].add(7) % 32
    key, kept = jax.random.key(6), jnp.full(3, keep)
    one, two = (DECODE(PARAMS, Tokens(ids=ids), key, kept) for ids in (IDS, other))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(
        one, DECODE(PARAMS, Tokens(ids=IDS), key, jnp.full(3, 2 * groups))
    )
    first = DECODE(PARAMS, Tokens(ids=IDS.at[:, 0].add(1) % 32), key, kept)
    assert float(jnp.abs(first - one).max()) > 1e-4


def test_fewer_ids_and_values_decode_alike():
    key = jax.random.key(7)
    one = DECODE(PARAMS, Tokens(ids=IDS), key, jnp.full(3, 4))
    np.testing.assert_allclose(
        one, DECODE(PARAMS, Tokens(values=values_of(IDS[:, :4])), key), atol=1e-5
    )
    with pytest.raises(ConfigError, match=r"sample\.tokens = 3: expected a multiple of the 2"):
        TOKENIZER.decode(PARAMS, Tokens(ids=IDS[:, :3]), key)


def test_the_group_of_every_time():
    released = experiment.resolve(load_config("configs/dar.py:imagenet256")).tokenizer
    times, groups = released.schedule
    np.testing.assert_array_equal(groups * released.group, np.arange(0, 256, 32))
    levels = 1 - np.asarray([0, 0.0667, 0.1429, 0.2308, 0.3333, 0.4545, 0.6, 0.7778, 1])
    np.testing.assert_allclose(times, levels, atol=1e-4)
    at = lambda t: int(released.active(jnp.float32(1 - t)))
    assert [at(i / 8) for i in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert [at(t) for t in (0.06, 0.065, 0.185, 0.19, 0.81, 0.815)] == [0, 1, 1, 2, 6, 7]
    finer = make(flow_steps=8).schedule[1]
    np.testing.assert_array_equal(finer, [0, 1, 1, 2, 2, 3, 3, 3])  # half-way rounds up


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def quantizer_grads(params, level):
    """Gradients of the quantizer's losses, and metrics, when every time is `level`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, level))
        metrics = TOKENIZER.loss(params, {"image": IMAGES}, jax.random.key(8))[1]
    return metrics["codebook"] + metrics["commitment"], metrics


@pytest.mark.parametrize(("level", "groups"), [(1.0, 1), (0.5, 3), (0.0, 4)])
def test_codes_after_the_active_group_have_no_loss(level, groups):
    z, codes = jax.jit(TOKENIZER.latents)(PARAMS, IMAGES), ENCODE(PARAMS, IMAGES).values
    error = np.square(np.asarray(vq.unit(z) - codes))[:, : 2 * groups].mean()
    grads, metrics = quantizer_grads(PARAMS, jnp.float32(level))
    assert float(metrics["codebook"]) == pytest.approx(error, rel=1e-4)
    assert float(metrics["commitment"]) == pytest.approx(0.25 * error, rel=1e-4)
    pulls = np.abs(np.asarray(grads["encoder"]["registers"])).max(-1)
    assert (pulls[: 2 * groups] > 0).all()
    assert (pulls[2 * groups :] == 0).all()


def test_the_perceptual_loss_sees_unscaled_pictures(monkeypatch):
    """Of the exact velocity the estimate is the picture, whatever the time."""
    gap = lambda x, y: jnp.abs(x - IMAGES).max((1, 2, 3)) + jnp.abs(y - IMAGES).max((1, 2, 3))
    monkeypatch.setattr(criteria, "pyramid", gap)
    key = jax.random.key(2)
    exact = noise_of(key) - 0.6 * IMAGES
    monkeypatch.setattr(dar.DAR, "velocity", lambda *_: (exact, None))
    own = make(flow_steps=5)  # compiled by itself
    loss, metrics = jax.jit(own.loss)(PARAMS, {"image": IMAGES}, key)
    assert loss.shape == (3,)
    assert float(metrics["perceptual"]) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["flow"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_alignment_averages_cells_and_pulls_the_denoisers_features():
    provider = types.SimpleNamespace(channels=16, apply=lambda params, image: params["target"])
    tokenizer = make(features=provider, align_weight=1.0)
    params = randomized(jax.eval_shape(tokenizer.init, jax.random.key(0)))
    frozen = {"features": {"target": jax.random.normal(jax.random.key(9), (3, 2, 2, 16))}}

    def align(p):
        losses, metrics = tokenizer.loss(p | frozen, {"image": IMAGES}, jax.random.key(1))
        return metrics["align"], (losses, metrics)

    grads, (losses, found) = jax.jit(jax.grad(align, has_aux=True))(params)
    assert 0.0 <= float(found["align"]) <= 2.0
    rest = found["flow"] + found["codebook"] + found["commitment"] + 0.5 * found["perceptual"]
    assert float(losses.mean()) == pytest.approx(float(rest + found["align"]), rel=1e-5)
    assert float(jnp.abs(grads["projector"]["out"]["kernel"]).max()) > 0
    assert float(jnp.abs(grads["decoder"]["patch_embed"]["kernel"]).max()) > 0
    features, seen = jax.random.normal(jax.random.key(2), (3, 16, 5)), []
    project = lambda cells: seen.append(cells) or jnp.ones((3, 4, 16))
    ones = {"target": jnp.ones((3, 2, 2, 16))}
    distance = criteria.alignment(provider, ones, IMAGES, features, (4, 4), project)
    np.testing.assert_allclose(distance, jnp.zeros(3), atol=1e-6)
    pooled = features.reshape(3, 2, 2, 2, 2, 5).mean((2, 4)).reshape(3, 4, 5)
    np.testing.assert_allclose(seen[0], pooled, atol=1e-6)


def test_evaluation_decodes_whole_groups():
    exp = experiment.resolve(load_config("configs/dar.py:tiny"))
    params = randomized(jax.eval_shape(exp.tokenizer.init, jax.random.key(0)))
    models = evaluate.Models(exp, {"tokenizer": params})
    assert models.lengths == (4, 8, 16)
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1), minval=-1, maxval=1)
    ids, key = models.encode(x).ids, jax.random.key(2)
    made = [np.asarray(models.decode(ids, n, key)) for n in models.lengths]
    assert np.abs(made[0] - made[1]).max() > 1e-3
    assert np.abs(made[1] - made[2]).max() > 1e-3
    again = models.decode(ids.at[:, 8:].set(0), 8, key)
    np.testing.assert_array_equal(again, made[1])
    config = load_config("configs/dar.py:tiny")
    config.sample.tokens = 6
    with pytest.raises(ConfigError, match=r"tokens = 6: expected 0 \| 4 \| 8 \| 12 \| 16, as only"):
        experiment.resolve(config)


def test_bfloat16():
    half = dataclasses.replace(TOKENIZER, dtype="bfloat16")
    loss, _ = jax.jit(half.loss)(PARAMS, {"image": IMAGES}, jax.random.key(3))
    full, _ = LOSS(PARAMS, {"image": IMAGES}, jax.random.key(3))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, full, rtol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=(4, 8, 8, 1)), r"data\.frames = 4: expected 0"),
        (dict(groups=3), r"tokenizer\.groups = 3: expected a divisor of tokenizer\.queries = 8"),
        (dict(flow_steps=3), r"tokenizer\.flow_steps = 3: expected at least tokenizer\.groups = 4"),
        (dict(encoder_patch=3), r"tokenizer\.encoder_patch = 3: expected a divisor of the side 8"),
        (dict(decoder_width=12), r"tokenizer\.decoder_width = 12: expected a positive multiple"),
        (dict(head_dim=6), r"tokenizer\.head_dim = 6: expected a positive multiple of 4"),
        (dict(shift=0.0), r"tokenizer\.shift = 0\.0: expected above 0"),
        (dict(align_weight=1.0), r"tokenizer\.align_weight = 1\.0: expected 0, or a feature"),
        (dict(perceptual_checkpoint="x"), r"tokenizer\.perceptual_checkpoint = 'x': expected ''"),
        (dict(bottleneck=dict(size=1)), r"tokenizer\.bottleneck\.size = 1"),
        (dict(latent=object()), r"latent\.name = ''"),
        (dict(querys=4), r"tokenizer\.querys = 4: unknown key \(did you mean 'queries'\?\)"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make(**change)


def test_other_bottlenecks_are_refused():
    section = config.tokenizer()
    section.bottleneck = dict(name="fsq", levels=(4, 4), printed=False)
    with pytest.raises(ConfigError, match=r"bottleneck\.name = 'fsq': expected vq, whose losses"):
        dar.make(section, SHAPE)
    del section.bottleneck
    with pytest.raises(ConfigError, match=r"tokenizer\.bottleneck = None: expected a section"):
        dar.make(section, SHAPE)
