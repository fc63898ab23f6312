"""MAR and xAR against their official code.

Fixtures: LTH14/mar models/{mar,diffloss}.py with width 64, 2 + 2 blocks, 4 class slots, a 4 x 4
grid of 4 channels, an 8-step sampler and a head of 2 blocks of width 32; OliverRensu/xAR
models/{xar,rope,sampler}.py with width 32, 1 + 1 blocks, its fixed 4 cells of 64 tokens of 16
channels, 4 solver steps; its states are the outputs of the last norm. Every parameter was
overwritten by `official.seeded`; all random draws were fed in.

MAR's "mild" chains are those of the official respacing "8,1", from time 500 on: from time 999 a
random denoiser's values grow to 1e5, and hide the noise of all but the first steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mar as mar_config
from configs import xar as xar_config
from nexttok import generator
from nexttok.heads import diffusion
from nexttok.heads.draw import Draw
from nexttok.interop import masked_autoencoder
from nexttok.samplers import executor
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.samplers.schedules import Guidance
from nexttok.tokens import TokenSpec
from tests.parity import official

PLAIN = warper(1.0, 0, 0.0)


@pytest.fixture(name="mar", scope="module")
def _mar():
    section = mar_config.generator(prefix=4, width=64, head_dim=16, mlp_hidden=256, dropout=0.0)
    section.head.update(width=32, depth=2, repeats=1, steps=8, clip=0.0)
    section.plan.steps = 4
    gen = generator.make(section, TokenSpec((4, 4), 0, 4), 5)
    fixture = official.load("mar")
    return gen, masked_autoencoder.mar(official.state_dict(fixture), gen), fixture


def test_mar_hidden_states_and_loss(mar):
    gen, params, fixture = mar
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    x, mask = jnp.asarray(fixture["x"]), jnp.asarray(fixture["mask"]) > 0
    visible = 4 + int((~mask[0]).sum())

    @jax.jit
    def run(params, label):
        lesson = gen.context.taught(x, mask, 4, visible)
        return gen.predicted(params, lesson, label), lesson.weight

    z, weight = run(params, jnp.asarray(fixture["label"]))
    official.close(z, fixture["z"])
    official.close(run(params, jnp.asarray([-1, -1]))[0], fixture["z_null"])
    flat = [jnp.asarray(fixture[k]).reshape(32, -1) for k in ("x", "noise")]
    t = jnp.asarray(fixture["t"]).reshape(-1).astype(jnp.int32)
    error, bound = gen.head.parts(
        params["head"], *flat, t, gen.head.condition(params["head"], jnp.asarray(fixture["z"]))
    )
    official.close(error, fixture["mse"].reshape(-1))
    np.testing.assert_allclose(bound, fixture["vb"].reshape(-1), rtol=2e-4, atol=1e-4)
    loss = ((error + bound).reshape(2, 16) * weight).mean()
    official.close(loss, fixture["loss"])


def test_mar_single_denoising_steps(mar):
    """Steps from well-scaled inputs; the noise of the samples was given, its temperature 0.9."""
    gen, params, fixture = mar
    chain = diffusion.cosine_chain(8)
    assert list(chain.times) == list(fixture["timestep_map"])
    told = gen.head.condition(params["head"], jnp.asarray(fixture["z"]))
    for i in range(8):
        x = jnp.asarray(fixture["step_x"][i]).reshape(32, 4)
        t = jnp.full((1,), float(chain.times[i]))
        noise, v = gen.head.denoise(params["head"], x, t, told)
        at = jnp.full((32,), i, jnp.int32)
        mean, log_var = diffusion.posterior(chain, x, noise, v, at)
        official.close(mean, fixture["step_mean"][i].reshape(32, 4))
        official.close(log_var, fixture["step_log_variance"][i].reshape(32, 4))
        fresh = jnp.asarray(fixture["sample_noise"][i, 0]).reshape(32, 4)
        sample = diffusion.ancestral(chain, x, noise, v, at, fresh, 0.9)
        official.close(sample, fixture["step_sample"][i].reshape(32, 4))


def mildly(gen, fixture, monkeypatch, normal):
    """The head on the mild chain; `normal` takes its place (key, name[, step]) and shape."""
    times = tuple(int(t) for t in fixture["mild_timestep_map"])
    monkeypatch.setattr(diffusion, "cosine_chain", lambda steps: diffusion.respaced(times))
    monkeypatch.setattr(diffusion, "stream", lambda *place: place)
    monkeypatch.setattr(jax.random, "normal", normal)
    return dataclasses.replace(gen, head=dataclasses.replace(gen.head, steps=len(times)))


@pytest.mark.parametrize(
    ("key", "scale", "temperature"), [("mild_sample", 1.0, 0.9), ("mild_sample_cfg", 3.0, 1.0)]
)
def test_mar_denoising_with_given_noise(mar, monkeypatch, key, scale, temperature):
    gen, params, fixture = mar
    start, fresh = jnp.asarray(fixture["sample_init"]), jnp.asarray(fixture["mild_noise"][::-1, 0])

    def normal(place, shape):
        return (start if place[1] == "start" else fresh[place[2]]).reshape(shape)

    head = mildly(gen, fixture, monkeypatch, normal).head

    @jax.jit
    def run(params, cond, null):
        other = None if scale == 1.0 else null
        draw = Draw(PLAIN, temperature)
        strength, key = jnp.asarray(scale, jnp.float32), jax.random.key(0)
        return head.sample(params["head"], cond, other, key, strength, draw)[0]

    drawn = run(params, jnp.asarray(fixture["z"]), jnp.asarray(fixture["z_null"]))
    official.close(drawn, fixture[key])


@pytest.mark.parametrize(
    ("key", "scale"), [("mild_tokens_noisy", 2.0), ("mild_tokens_noisy_nocfg", 1.0)]
)
def test_mar_generation_with_given_noise(mar, monkeypatch, key, scale):
    """Temperature 0.9; the noise of a token is given by its place in the image."""
    gen, params, fixture = mar
    order = fixture["order"][:, ::-1, None]
    given = np.concatenate([fixture["mild_noise"][::-1, 0], fixture["tokens_init"][None]])
    given = np.take_along_axis(given, np.broadcast_to(order, (len(given), 2, 16, 1)), axis=2)
    # a step may take more tokens than are left
    given = jnp.asarray(np.pad(given, ((0, 0), (0, 0), (0, 16), (0, 0))))

    def normal(place, shape):
        rows = given[-1 if place[1] == "start" else place[2]]
        return jax.lax.dynamic_slice_in_dim(rows, place[0], shape[0] // 2, 1).reshape(shape)

    gen = mildly(gen, fixture, monkeypatch, normal)
    monkeypatch.setattr(executor, "stream", lambda key, name, first: jnp.asarray(first, jnp.int32))
    official.close(generated(gen, params, fixture, scale, "linear", 0.9), fixture[key])


def test_mar_generation_without_noise(mar, monkeypatch):
    """From time 999 on, under constant guidance."""
    gen, params, fixture = mar
    assert gen.plan.sizes == tuple(fixture["sizes"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    tokens = generated(gen, params, fixture, 2.0, "constant", 1.0)
    official.close(tokens, fixture["tokens_constant"])


def generated(gen, params, fixture, scale, shape, temperature):
    guidance = Guidance(scale, 1.0, shape, 1.0, "masked")
    order = jnp.asarray(fixture["order"])[:, ::-1]  # the official order is read from its end

    @jax.jit
    def run(params):
        strength = None if guidance.off else lambda at: guidance.scale(at, gen.plan)
        label = jnp.asarray(fixture["label"])
        step = gen.step(params, label, gen.plan, Draw(PLAIN, temperature), strength)
        blank = jnp.zeros((2, 16, 4))
        return generate(step, gen.plan, blank, None, jax.random.key(0), order)[0]

    return run(params)


@pytest.fixture(name="xar", scope="module")
def _xar():
    section = xar_config.generator(
        width=32, depth=1, decoder_depth=1, head_dim=16, mlp_hidden=85, dropout=0.0
    )
    section.head.steps = 4
    gen = generator.make(section, TokenSpec((16, 16), 0, 16), 1000)
    fixture = official.load("xar")
    return gen, masked_autoencoder.xar(official.state_dict(fixture), gen), fixture


def test_xar_states_velocity_and_loss(xar):
    gen, params, fixture = xar
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    x = jnp.asarray(fixture["x"]).reshape(2, 256, 16)[:, gen.plan.order]
    noise = jnp.asarray(fixture["noise"]).reshape(2, 256, 16)
    lesson = gen.context.taught(gen.plan, x, jnp.asarray(fixture["t"]), noise)

    @jax.jit
    def run(params, slots, label):
        hidden = gen.hidden(params, slots, label)
        velocity = gen.head.velocity(params["head"], hidden)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return hidden, velocity, loss.mean()

    states, velocity, loss = run(params, lesson.slots, jnp.asarray(fixture["label"]))
    official.close(states, fixture["states"])
    official.close(velocity, fixture["velocity"].reshape(2, 256, 16))
    official.close(loss, fixture["loss"])
    _, null, loss = run(params, lesson.slots, jnp.asarray([-1, -1]))
    official.close(null.reshape(2, 4, 64, 16)[:, :, ::4], fixture["velocity_null_every4"])
    official.close(loss, fixture["loss_null"])


@pytest.mark.parametrize(
    "key", [pytest.param("tokens", marks=pytest.mark.slow), "tokens_zero_every4"]
)
def test_xar_generation(xar, monkeypatch, key):
    """Runs eagerly, so that the fixture's draws can be handed out in turn."""
    gen, params, fixture = xar
    latents = 10 * official.seeded("xar/latents", (8192,)).reshape(4, 2, 64, 16)
    fresh = 10 * official.seeded("xar/noise", (24576,)).reshape(4, 3, 2, 64, 16)
    draws = []
    for cell in range(4):  # the last solver step draws too, and multiplies by zero
        draws += [latents[cell], *fresh[cell], np.zeros_like(latents[cell])]
    turn = iter(draws)

    def normal(key, shape):
        drawn = jnp.asarray(next(turn))
        assert drawn.shape == tuple(shape)
        return drawn if "zero" not in name else jnp.zeros_like(drawn)

    name = key
    monkeypatch.setattr(jax.random, "normal", normal)
    guidance = Guidance(2.0, 1.0, "linear", 1.0, "step")
    label = jnp.asarray(fixture["label"])
    step = gen.step(
        params, label, gen.plan, Draw(PLAIN, 1.0), lambda at: guidance.scale(at, gen.plan)
    )
    with jax.disable_jit():
        cache = gen.init_cache(4, gen.plan)
        tokens = generate(step, gen.plan, jnp.zeros((2, 256, 16)), cache, jax.random.key(0))[0]
    expected = fixture[key].reshape(2, -1, 16)
    official.close(tokens if key == "tokens" else tokens[:, ::4], expected)
