"""TCTS's selector: what it is taught, what it learns, and whom it lets stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common, maskgit
from nexttok import drafters, sampling
from nexttok.config import ConfigError
from nexttok.experiment import resolve
from nexttok.optim import permissive
from nexttok.tokens import Tokens
from tests.generators import make, redrawn

GEN = make("maskgit", vocab=3)
BASE, KEY = redrawn(GEN, 1), jax.random.key(0)
N = GEN.plan.length


SELECTOR = drafters.make(common.section(name="tcts", layers=0, guesses=0), GEN)
LABEL = jnp.zeros((128,), jnp.int32)
FIRST = jax.jit(SELECTOR.init)(KEY)
filled = jax.jit(SELECTOR.filled)


def test_is_half_as_deep_and_reads_maps_without_gaps():
    blocks = jax.tree.leaves(FIRST["backbone"]["trunk"]["blocks"])
    assert {len(x) for x in blocks} == {GEN.backbone.depth // 2}
    ids = jax.random.randint(KEY, (128, N), 0, 3, jnp.int32)
    odds = jax.jit(SELECTOR.scores)(FIRST, ids, LABEL)
    other = jax.jit(SELECTOR.scores)(FIRST, ids.at[:, 0].add(1) % 3, LABEL)
    assert odds.shape == (128, N)
    assert (odds[:, 1:] != other[:, 1:]).all()  # every token sees the first


def test_only_hidden_tokens_are_filled():
    found, hidden = filled(BASE, jnp.full((128, N), 2, jnp.int32), LABEL, KEY)
    assert (found[~hidden] == 2).all()
    assert 0 < int(hidden.sum()) < hidden.size
    assert (found[hidden] != 2).any()


def test_learns_the_odds_that_a_token_is_the_data_s():
    """Data is all 0; of a token that is not, it is sure; of one that is, it knows how often."""
    data, optimizer = Tokens(ids=jnp.zeros((128, N), jnp.int32)), permissive(optax.adam(1e-2))

    @jax.jit
    def step(carry, i):
        params, state = carry
        key = jax.random.fold_in(KEY, i)
        grads = jax.grad(lambda p: SELECTOR.loss(p, BASE, data, LABEL, key)[0].mean())(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (FIRST, optimizer.init(FIRST)), jnp.arange(150))
    ids, hidden = filled(BASE, data.ids, LABEL, jax.random.key(7))
    odds = np.asarray(jax.nn.sigmoid(jax.jit(SELECTOR.scores)(params, ids, LABEL)))
    zero, real = np.asarray(ids) == 0, ~np.asarray(hidden)
    assert odds[~zero].max() < 0.1
    np.testing.assert_allclose(odds[zero].mean(), real[zero].mean(), atol=0.07)


def test_tokens_that_it_takes_for_the_data_s_stay():
    config = maskgit.get_config("tiny")
    config.drafter.name = config.sampler.name = "tcts"
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator)}
    params["drafter"] = jax.jit(exp.drafter.init)(KEY)
    args = jnp.zeros((4,), jnp.int32), KEY, sampling.blank(exp, 4)
    draw = sampling.sampler(exp)
    tokens, stats = draw(params, *args)
    assert tokens.shape == (4, exp.plan.length)
    assert int(stats["selector_calls"]) == int(stats["network_calls"]) == exp.plan.calls
    # with a constant score the first tokens in order stay, and none is drawn twice
    flat = jax.tree.map(jnp.zeros_like, params["drafter"]["score"])
    constant = params | {"drafter": params["drafter"] | {"score": flat}}
    assert not draw(constant, *args)[1]["revoked"].any()


def test_refuses_generators_that_are_not_masked():
    with pytest.raises(
        ConfigError, match=r"drafter\.name = 'tcts': expected '', as the model does"
    ):
        drafters.make(common.section(name="tcts", layers=0, guesses=0), make("llamagen"))
