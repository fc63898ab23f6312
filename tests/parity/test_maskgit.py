"""MaskGIT against its official code.

Fixture: google-research/maskgit nets/maskgit_transformer.py and libml/parallel_decode.py at width
64, 2 layers, 4 heads, 16 tokens of 64 codes, 5 labels, every parameter overwritten by
`official.seeded` times its gain. States are the last layer's outputs; the loss is that of
libml/losses.py over the hidden tokens (7 of one example, 11 of the other) with a smoothing of 0.1
over all 70 rows. Decoding with categorical draws replaced by argmax and Gumbel noise by zero, once
from nothing in 7 steps, once from 5 known tokens in 5 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maskgit as config
from nexttok import generator
from nexttok.heads.draw import Draw
from nexttok.interop.maskgit import convert
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.steps import random_order
from nexttok.tokens import TokenSpec
from tests.parity import official


def built(steps):
    section = config.generator(width=64, depth=2, head_dim=16, mlp_hidden=128, dropout=0.0)
    section.plan.steps = steps
    gen = generator.make(section, TokenSpec((4, 4), 64, 8), 5)
    return gen, convert(official.state_dict(official.load("maskgit"), "flax"), gen)


def test_hidden_states_logits_and_loss():
    gen, params = built(7)
    fixture = official.load("maskgit")
    expected = jax.eval_shape(gen.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    ids, mask = jnp.asarray(fixture["ids"]), jnp.asarray(fixture["mask"])

    @jax.jit
    def run(params):
        lesson = gen.context.taught(ids, mask, 1, 0)
        hidden = gen.predicted(params, lesson, jnp.asarray(fixture["label"]))
        head, key = gen.head_params(params), jax.random.key(0)
        nats = [gen.head.loss(head, hidden, ids, key, train)[0] for train in (True, False)]
        return hidden, gen.head.outputs(head, hidden), nats[0] * lesson.weight, nats[1]

    states, logits, loss, nats = run(params)
    official.close(states, fixture["states"])
    tokens = fixture["logits"][:, 1:, :64]  # the rest are labels and the mask, which nobody draws
    official.close(logits, tokens)
    official.close(loss.mean(), fixture["loss"])
    drawn = jax.nn.log_softmax(jnp.asarray(tokens))
    true = jnp.take_along_axis(drawn, ids[..., None], axis=2)[..., 0]
    official.close(nats, -true)


@pytest.mark.parametrize(("key", "given", "steps"), [("greedy", 0, 7), ("edited", 5, 5)])
def test_decoding_by_confidence(key, given, steps):
    fixture = official.load("maskgit")
    gen, params = built(steps)
    plan = gen.plan.after(given)
    left = [n for n in 16 - np.cumsum(plan.sizes) if 0 < n < 16 - given]
    counts = fixture["edited_hidden" if given else "hidden"]
    np.testing.assert_array_equal(counts, np.stack([left, left], axis=1))

    @jax.jit
    def run(params):
        draw = Draw(warper(1.0, 1, 0.0), 1.0)
        step = gen.step(params, jnp.asarray(fixture["label"]), plan, draw, confidence=0.0)
        known = jnp.asarray(fixture["known"])
        order = random_order(jax.random.key(1), 2, 16, known) if given else None
        ids = jnp.asarray(fixture["ids"])
        return generate(step, plan, ids, None, jax.random.key(0), order, given)[0]

    ids = run(params)
    np.testing.assert_array_equal(ids, fixture[key])
    assert len(np.unique(ids)) > 3
