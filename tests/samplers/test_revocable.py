"""Revocable sampling against enumeration; the attention that tokens receive."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maskgit
from nexttok import sampling, views
from nexttok.experiment import resolve
from nexttok.nn.kernels import received
from nexttok.samplers.exactness import bound, total_variation
from nexttok.samplers.logits import warper
from nexttok.samplers.revocable import revocable, staying
from tests.generators import make, params_of, redrawn
from tests.samplers.test_parallel import STRINGS as EVERY
from tests.samplers.test_parallel import N, V, oracle

KEY, PLAIN = jax.random.key(0), warper(1.0, 0, 0.0)
JOINT = np.random.default_rng(1).dirichlet(np.full(V**N, 0.4))
ATTENTION = np.asarray([0.1, 0.4, 0.2, 0.3], np.float32)  # 0 and 2 are of low frequency
LOW = ATTENTION < 0.25


def marginals(tokens, hidden):
    fits = (np.asarray(hidden) | np.equal(EVERY, tokens)).all(1)
    weights = JOINT * fits
    return np.stack([weights @ np.equal(EVERY, v) for v in range(V)], 1) / weights.sum()


def expected_law(kept, persistent):
    """Every string that the calls can draw, with its probability."""
    states = {((0,) * N, (True,) * N, (0.0,) * N): 1.0}
    for count in kept:
        after = collections.Counter()
        for (tokens, hidden, sure), p in states.items():
            probs = marginals(tokens, hidden)
            fixed = ~np.asarray(hidden) & persistent & LOW
            options = [range(V) if h else [t] for t, h in zip(tokens, hidden, strict=True)]
            for new in itertools.product(*options):
                own = probs[np.arange(N), new]
                weight = np.prod(own[np.asarray(hidden)])
                if weight == 0:
                    continue
                known = np.where(hidden, np.log(np.maximum(own, 1e-30)), sure)
                order = np.argsort(-np.where(fixed, np.inf, known), kind="stable")
                stays = np.zeros(N, bool)
                stays[order[:count]] = True
                state = new, tuple((~stays).tolist()), tuple(known.tolist())
                after[state] += p * weight
        states = after
    law = np.zeros(V**N)
    for (tokens, _, _), p in states.items():
        law[int("".join(map(str, tokens)), V)] += p
    return law


@pytest.mark.parametrize("persistent", [False, True])
def test_follows_its_law(persistent):
    kept, count, model = (1, 2, 3, 4), 30_000, oracle(JOINT)
    watch = lambda *args: (model.predict(*args), jnp.broadcast_to(ATTENTION[None], (count, N)))
    model = dataclasses.replace(model, watch=watch)
    run = jax.jit(lambda: revocable(model, PLAIN, kept, count, KEY, persistent=persistent))
    tokens, stats = run()
    law = expected_law(kept, persistent)
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-6)
    assert total_variation(tokens, law) < bound(law, count)
    assert stats["network_calls"] == 4
    assert 0 < stats["revoked"].mean() < 3
    assert 0.5 * np.abs(law - expected_law(kept, not persistent)).sum() > bound(law, count)


def test_a_score_of_complete_tokens_decides():
    first = lambda tokens: jnp.broadcast_to(-jnp.arange(N, dtype=jnp.float32)[None], tokens.shape)
    kept, count = (1, 2, 3, 4), 20_000
    tokens, stats = jax.jit(lambda: revocable(oracle(JOINT), PLAIN, kept, count, KEY, first))()
    assert total_variation(tokens, JOINT) < bound(JOINT, count)  # token by token it is exact
    assert int(stats["revoked"].max()) == 0


def test_as_many_stay_as_were_asked_for():
    sure = jax.random.normal(KEY, (5, 7))
    fixed = sure > 1.0
    for count in range(int(fixed.sum(1).max()), 8):
        stays = staying(sure, fixed, count)
        assert (stays.sum(1) == count).all()
        assert not (fixed & ~stays).any()
        least = jnp.where(stays, sure, jnp.inf).min(1)
        assert (jnp.where(stays, -jnp.inf, sure).max(1) <= least).all()


def test_received_attention_sums_to_one_over_what_is_seen():
    q, k = jax.random.normal(KEY, (2, 1, 3, 2, 4))
    mask = jnp.asarray([[True, True, False]] * 3)
    found = np.asarray(received(q, k, mask, 0.5))
    scores = np.einsum("qhd,khd->hqk", q[0], k[0])[..., :2] * 0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(found[0, :2], weights.mean((0, 1)), rtol=1e-5)
    assert found[0, 2] == 0


def test_a_masked_generator_is_watched():
    gen, label = make("maskgit"), jnp.asarray([0, 2], jnp.int32)
    scale = lambda at: jnp.asarray(1.5)
    model = views.masked(gen, params_of("maskgit"), label, gen.plan, scale)
    tokens = jnp.asarray([[1, 2, 0, 3, 4, 0], [0, 0, 1, 1, 2, 2]], jnp.int32)
    hidden = jnp.asarray([[False, True] * 3, [True] * 6])
    both = jax.jit(lambda *args: (model.predict(*args), *model.watch(*args)))
    expected, logits, found = both(tokens, hidden)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 6)
    assert (found > 0).all()
    assert (found.sum(1) < 1).all()  # the class receives the rest
    # of hidden tokens nothing is read
    again = both(jnp.where(hidden, 3, tokens), hidden)
    np.testing.assert_allclose(found, again[2], rtol=1e-5)


@pytest.mark.slow
def test_by_config():
    config = maskgit.get_config("tiny")
    config.sampler.update(name="revocable", persistent=True)
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator, 2)}
    label, blank = jnp.arange(4, dtype=jnp.int32), sampling.blank(exp, 4)
    tokens, stats = sampling.sampler(exp)(params, label, KEY, blank)
    assert tokens.shape == (4, 16)
    assert stats["network_calls"] == 8
