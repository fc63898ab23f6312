"""Next Block Prediction against its official code.

Fixtures: RenShuhuai-Andy/NBP nbp/modules/gpt.py and nbp/lm_transformer.py with 2 layers of width
64, 4 heads, blocks of 4, 16 video tokens of 64 ids, every parameter overwritten by
`official.seeded`. `nbp` is the hybrid class with one class slot of 5 classes; its joint vocabulary
has 73 ids, and greedy tokens were drawn with the ids that are no video tokens masked. `nbp_pure` is
the unconditional one: its first block is never predicted, so logits and loss are those of the last
12 tokens; greedy tokens continue the first block, and the first two of them, of the same ids.
`nbp_text` is the hybrid class behind 8 ids of LLaMA's vocabulary, of "apply eye makeup" and "yo
yo", with 40 positions where 24 are used; it holds the video's logits alone, and greedy tokens drawn
with the other ids masked. States are those after the last norm.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nbp as config
from nexttok import generator
from nexttok.heads.draw import Draw
from nexttok.interop.nbp import convert
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.samplers.schedules import Guidance
from nexttok.tokens import Tokens, TokenSpec
from tests.parity import official

SMALL = dict(width=64, depth=2, head_dim=16, mlp_hidden=256, dropout=0.0)


@functools.cache
def model(name):
    """Generator, its converted parameters, and what official code made of them."""
    if name == "nbp_pure":
        section = config.pure(**SMALL)
    elif name == "nbp_text":
        section = config.generator(**SMALL, prefix=8, prefix_words=True)
    else:
        section = config.generator(**SMALL)
    section.head.reserved = {"nbp": 4 + 5, "nbp_pure": 0, "nbp_text": 4 + 32_000}[name]
    gen = generator.make(section, TokenSpec((4, 4), 64, 8), 101 if name == "nbp_text" else 5)
    fixture = official.load(name)
    return gen, convert(official.state_dict(fixture), gen), fixture


@pytest.mark.parametrize("name", ["nbp", "nbp_pure", "nbp_text"])
def test_teacher_forced_states_logits_and_loss(name):
    gen, params, fixture = model(name)
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    tokens = Tokens(ids=jnp.asarray(fixture["ids"]))

    @jax.jit
    def run(params, label):
        lesson = gen.lesson(tokens, jax.random.key(0))
        hidden = gen.predicted(params, lesson, label)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return hidden, gen.head.outputs(params["head"], hidden), loss.mean()

    states, logits, loss = run(params, jnp.asarray(fixture.get("label", [-1, -1])))
    official.close(states, fixture["states"])
    official.close(logits, fixture["logits"][..., -64:])
    official.close(loss, fixture["loss"])
    if "logits_uncond" in fixture:
        null = run(params, jnp.asarray([-1, -1]))[1]
        official.close(null, fixture["logits_uncond"][..., -64:])


@pytest.mark.parametrize(
    ("name", "key", "scale", "given"),
    [
        ("nbp", "greedy_video", 1.0, 0),
        ("nbp", "greedy_cfg_video", 2.5, 0),
        ("nbp_text", "greedy", 1.0, 0),
        ("nbp_pure", "greedy", 1.0, 1),
        ("nbp_pure", "greedy_two_blocks", 1.0, 2),
    ],
)
def test_greedy_generation(name, key, scale, given):
    gen, params, fixture = model(name)
    plan = dataclasses.replace(gen.plan, given=given)
    assert plan.sizes == ((4, 4, 4, 4) if given else (1, 1, 1, 1, 4, 4, 4))
    guidance = Guidance(scale, 1.0, "constant", 1.0, "step")
    # what is not given must not be read
    start = np.where(np.arange(16) < plan.known, fixture["ids"], 0)

    @jax.jit
    def run(params):
        draw = Draw(warper(1.0, 1, 0.0), 1.0)
        strength = None if guidance.off else lambda at: guidance.scale(at, plan)
        label = jnp.asarray(fixture.get("label", [-1, -1]))
        step = gen.step(params, label, plan, draw, strength)
        cache = gen.init_cache(2 if guidance.off else 4, plan)
        return generate(step, plan, jnp.asarray(start), cache, jax.random.key(0))

    tokens, stats = run(params)
    assert int(stats["steps"]) == plan.calls
    shift = gen.head.reserved if name == "nbp" else 0
    np.testing.assert_array_equal(tokens, fixture[key] - shift)
