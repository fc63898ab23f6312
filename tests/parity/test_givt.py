"""GIVT against its official code.

Fixtures: google-research/big_vision models/proj/givt/{givt,decode,parallel_decode}.py with 2
scanned layers of width 64, 4 heads, 16 tokens of 4 channels, 4 mixtures, 5 labels; the causal
model, and the masked one with mask_style "concat" and "replace". Every parameter was overwritten
by `official.seeded` times its gain, so that attention logits deviate by 1 to 2; states are the
outputs of the last norm; decoding took the mean of the likeliest component, and no Gumbel noise.
"givt_guidance": CFGDensity of two given mixtures, with the drawn components, normal and uniform
numbers given.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import givt as config
from nexttok import generator
from nexttok.heads import gmm
from nexttok.heads.draw import Draw
from nexttok.interop.givt import convert
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.tokens import Tokens, TokenSpec
from tests.parity import official

NAMES = ("givt_causal", "givt_masked", "givt_replace")


def built(name):
    masked = name != "givt_causal"
    section = config.generator(masked, width=64, depth=2, head_dim=16, mlp_hidden=128, dropout=0.0)
    section.head.mixtures = 4
    section.backbone.concat_mask = name == "givt_masked"
    if masked:
        section.plan.steps = 5
    gen = generator.make(section, TokenSpec((4, 4), 0, 4), 5)
    fixture = official.load(name)
    return gen, convert(official.state_dict(fixture, "flax"), gen), fixture


@pytest.mark.parametrize("name", NAMES)
def test_states_mixtures_and_likelihood(name):
    gen, params, fixture = built(name)
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    z, mask = jnp.asarray(fixture["z"]), jnp.asarray(fixture["mask"])

    @jax.jit
    def run(params, label):
        lesson = (
            gen.lesson(Tokens(values=z), jax.random.key(0))
            if name == "givt_causal"
            else gen.context.taught(z, mask, 1, 0)
        )
        hidden = gen.predicted(params, lesson, label)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return hidden, gen.head.outputs(params["head"], hidden), loss

    states, logits, nll = run(params, jnp.asarray(fixture["label"]))
    official.close(states, fixture["states"])
    official.close(logits, fixture["logits"])
    official.close(nll, fixture["nll"])
    older = gmm.split(jnp.asarray(fixture["logits"]), 4, halved=False)
    official.close(-gmm.log_prob(*older, z), fixture["nll_legacy"])
    official.close(run(params, jnp.asarray([-1, -1]))[1], fixture["logits_null"])


@pytest.mark.parametrize("name", NAMES)
def test_generation_without_noise(name, monkeypatch):
    gen, params, fixture = built(name)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    monkeypatch.setattr(jax.random, "categorical", lambda key, x, axis: jnp.argmax(x, axis))

    @jax.jit
    def run(params):
        draw = Draw(warper(1.0, 0, 0.0), 1.0)
        step = gen.step(params, jnp.asarray(fixture["label"]), gen.plan, draw)
        blank = jnp.zeros((2, 16, 4))
        return generate(step, gen.plan, blank, gen.init_cache(2, gen.plan), jax.random.key(0))[0]

    if name != "givt_causal":
        np.testing.assert_array_equal(fixture["uncovered"][:, 0], gen.plan.sizes)
    official.close(run(params), fixture["tokens"])


@pytest.mark.parametrize("w", [0.4, 1.5])
def test_guided_density_and_its_rejection_sampling(w, monkeypatch):
    fixture = {k: jnp.asarray(v) for k, v in official.load("givt_guidance").items()}
    noise = np.random.default_rng(3)
    normal = jnp.asarray(noise.standard_normal((1000, 2, 3, 4)), jnp.float32)
    uniform = jnp.asarray(noise.random((1000, 2, 3, 4)), jnp.float32)
    monkeypatch.setattr(gmm, "tried", lambda key, numbers, _: (normal[numbers], uniform[numbers]))
    cond, uncond = (
        tuple(gmm.pick(fixture["component"], fixture[f"{part}_{k}"]) for k in ("loc", "scale"))
        for part in ("cond", "uncond")
    )
    strength = jnp.asarray(w, jnp.float32)
    for i, point in enumerate(fixture["grid"]):
        density = gmm.guided_log_prob(jnp.full((2, 3, 4), point), cond, uncond, strength)
        official.close(density, fixture[f"w{w}/log_prob"][i])
    drawn = gmm.rejection_sample(jax.random.key(0), cond, uncond, strength)
    official.close(drawn, fixture[f"w{w}/samples"])
    assert int(fixture[f"w{w}/tries"].max()) == 8
