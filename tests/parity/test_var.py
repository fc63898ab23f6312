"""VAR against its official code.

Fixtures: FoundationVision/VAR models/{var,basic_var,quant,vqvae}.py at depth 3, width 48, 3 heads,
maps of side 1, 2, 3, 4, 64 codes of 8 channels, 5 classes, L2 attention, without and with shared
adaLN, every parameter overwritten by `official.seeded`. The teacher-forced inputs come from the
official quantizer; states are the outputs of the adaLN before the head; greedy tokens from
autoregressive_infer_cfg(cfg=1.5, top_k=1).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, var
from nexttok import generator
from nexttok.bottlenecks import multiscale
from nexttok.heads.draw import Draw
from nexttok.interop.var import convert
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.samplers.schedules import Guidance
from nexttok.tokens import Tokens, TokenSpec
from tests.parity import official

SIDES = (1, 2, 3, 4)


def built(shared):
    section = var.generator(width=48, depth=3, head_dim=16)
    section.backbone.update(adaln_shared=shared, dropout=0.0, drop_path=0.0)
    return generator.make(section, TokenSpec((30,), 64, 8, True, SIDES), 5)


@pytest.mark.parametrize("name", ["var", "var_shared"])
def test_teacher_forced_states_logits_and_loss(name):
    fixture, gen = official.load(name), built(name == "var_shared")
    params = convert(official.state_dict(fixture), gen)
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    values = np.pad(fixture["ar_inputs"], ((0, 0), (1, 0), (0, 0)))
    tokens = Tokens(jnp.asarray(fixture["ids"]), jnp.asarray(values))

    @jax.jit
    def run(params, label):
        lesson = gen.lesson(tokens, jax.random.key(0))
        hidden = gen.predicted(params, lesson, label)
        loss = gen.head.loss(params["head"], hidden, lesson.target, jax.random.key(0), True)[0]
        return hidden, gen.head.outputs(params["head"], hidden), loss.mean()

    states, logits, loss = run(params, jnp.asarray(fixture["label"]))
    official.close(states, fixture["states"])
    official.close(logits, fixture["logits"])
    official.close(loss, fixture["loss"])
    official.close(run(params, jnp.asarray([-1, -1]))[1], fixture["logits_null"])


def test_greedy_generation():
    fixture, gen = official.load("var"), built(False)
    params = convert(official.state_dict(fixture), gen)
    weights = official.state_dict(official.load("var_vqvae4"))
    phi = "quantize.quant_resi.qresi_ls"
    phis = {
        f"conv{i}": {
            "kernel": jnp.asarray(weights[f"{phi}.{i}.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(weights[f"{phi}.{i}.bias"]),
        }
        for i in range(4)
    }
    book = jnp.asarray(weights["quantize.embedding.weight"])
    guidance = Guidance(2.5, 1.0, "linear", 1.0, "step")
    advance = functools.partial(_advance, book=book, phis=phis)

    @jax.jit
    def run(params):
        label = jnp.asarray(fixture["label"])
        draw = Draw(warper(1.0, 1, 0.0), 1.0)
        scale = lambda at: guidance.scale(at, gen.plan)
        step = gen.step(params, label, gen.plan, draw, scale, advance=advance)
        state = (gen.init_cache(4, gen.plan), *multiscale.start(2, 8, SIDES))
        blank = jnp.zeros((2, 30), jnp.int32)
        return generate(step, gen.plan, blank, state, jax.random.key(0))[0]

    ids = run(params)
    np.testing.assert_array_equal(ids, fixture["greedy"])
    official.close(multiscale.ids_to_values(ids, book, phis, SIDES), fixture["greedy_f_hat"])
    assert len(np.unique(ids)) > 4


def _advance(coarse, ids, k, book, phis):
    return multiscale.advance(coarse, ids, k, book, phis, SIDES)


def test_configs_share_the_backbone_of_the_release():
    assert common.backbone().keys() == var.generator(width=48, depth=3, head_dim=16).backbone.keys()
