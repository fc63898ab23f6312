"""Next Block Prediction against its official code.

Fixture: RenShuhuai-Andy/NBP nbp/modules/gpt.py and nbp/lm_transformer.py (the hybrid class) with 2
layers of width 64, 4 heads, blocks of 4, 16 video tokens of 64 ids, one class slot of 5 classes,
every parameter overwritten by `official.seeded`. Its joint vocabulary has 73 ids; greedy tokens
were drawn with the ids that are no video tokens masked.
"""

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


@pytest.fixture(name="model", scope="module")
def _model():
    section = config.generator(width=64, depth=2, head_dim=16, mlp_hidden=256, dropout=0.0)
    section.head.reserved = 9
    gen = generator.make(section, TokenSpec((4, 4), 64, 8), 5)
    fixture = official.load("nbp")
    return gen, convert(official.state_dict(fixture), gen), fixture


def test_teacher_forced_logits_and_loss(model):
    gen, params, fixture = model
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    tokens = Tokens(ids=jnp.asarray(fixture["ids"]))

    @jax.jit
    def run(params, label):
        lesson = gen.lesson(tokens, jax.random.key(0))
        hidden = gen.predicted(params, lesson, label)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return gen.head.outputs(params["head"], hidden), loss.mean()

    logits, loss = run(params, jnp.asarray(fixture["label"]))
    official.close(logits, fixture["logits"][..., 9:])
    official.close(loss, fixture["loss"])
    null = run(params, jnp.asarray([-1, -1]))[0]
    official.close(null, fixture["logits_uncond"][..., 9:])


@pytest.mark.parametrize(("key", "scale"), [("greedy_video", 1.0), ("greedy_cfg_video", 2.5)])
def test_greedy_generation(model, key, scale):
    gen, params, fixture = model
    assert gen.plan.sizes == (1, 1, 1, 1, 4, 4, 4)
    guidance = Guidance(scale, 1.0, "constant", 1.0, "step")

    @jax.jit
    def run(params):
        draw = Draw(warper(1.0, 1, 0.0), 1.0)
        strength = None if guidance.off else lambda at: guidance.scale(at, gen.plan)
        step = gen.step(params, jnp.asarray(fixture["label"]), gen.plan, draw, strength)
        cache = gen.init_cache(2 if guidance.off else 4, gen.plan)
        return generate(step, gen.plan, jnp.zeros((2, 16), jnp.int32), cache, jax.random.key(0))[0]

    np.testing.assert_array_equal(run(params), fixture[key] - 9)
