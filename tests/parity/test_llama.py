"""LlamaGen, RandAR and ARPG against their official code.

Fixtures: FoundationVision/LlamaGen autoregressive/models/{gpt,generate}.py, ziqipang/RandAR
RandAR/model/randar_gpt.py and hp-l33/ARPG models/arpg.py were built at width 64, 4 heads, 2 layers
(ARPG 2 + 2), a 4 x 4 grid, 64 codes, 5 classes, dropout 0, every parameter overwritten by
`official.seeded`. Teacher-forced states (after the last norm), logits and loss come from the
training path, greedy tokens from their own cached generation with top_k = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from nexttok import generator
from nexttok.heads.draw import Draw
from nexttok.interop import llama
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.samplers.schedules import Guidance
from nexttok.tokens import Tokens, TokenSpec
from tests.parity import official

SIZES = dict(width=64, head_dim=16, mlp_hidden=256, dropout=0.0)
QUERY = {"name": "query"}


def built(plan, context, backbone):
    section = common.section(
        plan=plan, context=common.section(**context), head=common.categorical(),
        backbone=backbone, class_dropout=0.1,
    )  # fmt: skip
    return generator.make(section, TokenSpec((4, 4), 64, 8), 5)


def llamagen():
    return built(common.plan(), {"name": "shift"}, common.llama(**SIZES, depth=2))


def randar(steps):
    plan = common.plan("random", steps=steps, schedule="randar")
    backbone = common.llama(**SIZES, depth=2, rotate_query=True)
    return built(plan, QUERY | {"layout": "interleaved"}, backbone)


def arpg(schedule):
    backbone = common.llama("cross_decoder", **SIZES, depth=2, decoder_depth=2)
    plan = common.plan("random", steps=6, schedule=schedule)
    return built(plan, QUERY | {"layout": "separate"}, backbone)


def teacher_forced(gen, params, fixture, label):
    ids = jnp.asarray(fixture["ids"])
    default = jnp.arange(gen.spec.length)[None]
    order = jnp.asarray(fixture["order"]) if "order" in fixture else default

    @jax.jit
    def run(params):
        lesson = gen.lesson_in(Tokens(ids=ids), order, gen.teaching, jax.random.key(0))
        hidden = gen.predicted(params, lesson, label)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return hidden, gen.head.outputs(params["head"], hidden), loss.mean()

    return run(params)


def greedy(gen, params, label, order, guidance):
    draw = Draw(warper(1.0, 1, 0.0), 1.0)
    scale = None if guidance is None else lambda at: guidance.scale(at, gen.plan)

    @jax.jit
    def run(params):
        step = gen.step(params, label, gen.plan, draw, scale)
        cache = gen.init_cache(2 if scale is None else 4, gen.plan)
        blank = jnp.zeros((2, gen.spec.length), jnp.int32)
        return generate(step, gen.plan, blank, cache, jax.random.key(0), order)[0]

    return run(params)


@pytest.mark.parametrize(
    ("name", "gen", "convert"),
    [
        ("llamagen", llamagen(), llama.llamagen),
        ("randar", randar(6), llama.llamagen),
        ("arpg", arpg("arccos"), llama.arpg),
    ],
)
def test_teacher_forced_states_logits_and_loss(name, gen, convert):
    fixture = official.load(name)
    params = convert(official.state_dict(fixture), gen)
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    states, logits, loss = teacher_forced(gen, params, fixture, jnp.asarray(fixture["label"]))
    official.close(states, fixture["states"])
    official.close(logits, fixture["logits"])
    official.close(loss, fixture["loss"])
    if "logits_null" in fixture:
        null = teacher_forced(gen, params, fixture, jnp.full((2,), -1, jnp.int32))[1]
        official.close(null, fixture["logits_null"])


@pytest.mark.parametrize(
    ("name", "key", "gen", "convert", "guidance"),
    [
        ("llamagen", "greedy", llamagen(), llama.llamagen, (2.0, 1.0, "constant", "step")),
        ("llamagen", "greedy_nocfg", llamagen(), llama.llamagen, None),
        ("randar", "greedy", randar(6), llama.llamagen, (4.0, 1.0, "linear", "before")),
        ("randar", "greedy_single", randar(0), llama.llamagen, None),
        ("arpg", "greedy_arccos", arpg("arccos"), llama.arpg, (3.0, 1.0, "linear", "after")),
        ("arpg", "greedy_cosine", arpg("cosine"), llama.arpg, (3.0, 1.0, "linear", "after")),
    ],
)
def test_greedy_generation(name, key, gen, convert, guidance):
    fixture = official.load(name)
    params = convert(official.state_dict(fixture), gen)
    order = None
    if name == "randar":
        order = jnp.asarray(fixture["order"])
    if name == "arpg":
        order = jnp.broadcast_to(jnp.asarray(fixture["gen_order"]), (2, 16))
    if guidance is not None:
        end, start, shape, clock = guidance
        guidance = Guidance(end, start, shape, 1.0, clock)
    ids = greedy(gen, params, jnp.asarray(fixture["label"]), order, guidance)
    np.testing.assert_array_equal(ids, fixture[key])
    assert len(np.unique(fixture[key])) > 3
