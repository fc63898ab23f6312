"""TTS-VAR: its parts in closed form, the law of a whole search by enumeration, VAR by config."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import var
from nexttok import sampling
from nexttok.config import ConfigError
from nexttok.evals import classifier
from nexttok.experiment import resolve
from nexttok.plans import Plan
from nexttok.samplers import scaling
from nexttok.samplers.exactness import bound
from nexttok.steps import Step
from nexttok.tokens import Tokens

KEY = jax.random.key(0)


def softmax(x):
    return np.asarray(jax.nn.softmax(jnp.asarray(x, jnp.float32)), np.float64)


def test_particles_are_drawn_by_their_weights():
    phi, count = np.asarray([0.3, -0.2, 0.1]), 20_000
    rows = jnp.broadcast_to(jnp.asarray(phi, jnp.float32), (count, 3))
    found = np.asarray(scaling.resampled(KEY, rows, 2, 5.0))
    pairs = np.bincount(found[:, 0] * 3 + found[:, 1], minlength=9) / count
    expected = np.outer(*[softmax(5.0 * phi)] * 2).reshape(-1)  # independent of each other
    assert 0.5 * np.abs(pairs - expected).sum() < bound(expected, count)


def test_potentials():
    rewards = jnp.asarray([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    for kind, expected in {
        "value": [0.5, 1.0], "diff": [2.5, -2.0], "max": [1.0, 3.0], "sum": [-0.5, 4.0],
    }.items():  # fmt: skip
        np.testing.assert_allclose(scaling.potential(rewards, kind), expected)
        np.testing.assert_allclose(scaling.potential(rewards[:, :1], kind), [1.0, 0.0])


def test_clusters_give_the_members_nearest_to_their_centres():
    blobs = [[0, 0], [0.1, 0], [0.5, 0], [9, 9], [9, 9.2], [-7, 4], [9, 9.1]]  # means: 1, 6, 5
    spread = jax.jit(scaling.spread, static_argnums=1)
    assert sorted(spread(jnp.asarray(blobs, jnp.float32), 3).tolist()) == [1, 5, 6]
    assert len(set(spread(jnp.ones((7, 2)), 3).tolist())) == 3
    every = spread(jax.random.normal(KEY, (5, 3)), 5)
    assert sorted(every.tolist()) == [0, 1, 2, 3, 4]


def test_principal_projection_keeps_its_sign():
    profile, direction = jnp.asarray([[1.0, 2.0], [4.0, 5.0]]), jnp.asarray([0.6, -0.8])
    x = 7.0 + profile[None, ..., None] * direction[None, None, None]
    expected = -(np.asarray(profile).reshape(-1) - 3.0)  # the largest entry is negative
    np.testing.assert_allclose(scaling.principal(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_particles_fall():
    assert scaling.schedule((), 13) == scaling.PAPER
    assert scaling.schedule((), 4) == (8, 6, 2, 1)
    assert scaling.schedule((), 1) == (8,)
    for bad in ((4, 2), (2, 4, 1, 1), (2, 1, 1, 0)):
        with pytest.raises(ConfigError, match="4 numbers that do not rise"):
            scaling.schedule(bad, 4)


FIRST = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
SECOND = jnp.log(jnp.asarray([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]]))
REWARD = jnp.asarray([[0.0, 0.4, 0.1], [0.3, 0.2, 0.9]])  # of the token of each step


def toy(widths, count, selection, seen=None):
    """A model of two tokens, the second given the first, searched."""

    def step(width):
        def run(tokens, order, at, state, key):
            assert len(state) == len(tokens) == width * count
            if seen is not None:
                seen.append(len(tokens))
            logits = FIRST[None] if at.index == 0 else SECOND[state]
            logits = jnp.broadcast_to(logits, (len(tokens), 3))
            new = jax.random.categorical(key, logits).astype(jnp.int32)
            return new[:, None], order, new

        return Step(run)

    plan = Plan(np.arange(2, dtype=np.int32), (1, 1))
    state = jnp.zeros((count * widths[0],), jnp.int32)
    return scaling.search(step, lambda s, rows: s[rows], plan, widths, count, state, KEY, selection)


def kept(found, stats):
    """The tokens; the numbers, which are known when compiled, go to `stats`."""
    stats.update(found[1])
    return found[0]


def rewarded(k, tokens):
    return REWARD[k][tokens[:, k]]


def expected_law(strength):
    """Three particles of token 0, two of them drawn by reward, then the better by its token 1."""
    p, q, r = softmax(FIRST), np.asarray(jax.nn.softmax(SECOND, -1), np.float64), np.asarray(REWARD)
    law = np.zeros((3, 3))
    for first in itertools.product(range(3), repeat=3):
        weight = softmax(strength * r[0][list(first)])
        for i, j in itertools.product(range(3), repeat=2):
            a, b = first[i], first[j]
            for u, v in itertools.product(range(3), repeat=2):
                best = (a, u) if r[1][u] >= r[1][v] else (b, v)
                law[best] += np.prod(p[list(first)]) * weight[i] * weight[j] * q[a, u] * q[b, v]
    return law.reshape(-1)


def test_a_search_follows_its_law():
    count, seen = 30_000, []
    selection = scaling.Selection(0, None, rewarded, "value", 3.0)
    stats = {}
    tokens = jax.jit(lambda: kept(toy((3, 2), count, selection, seen), stats))()
    assert seen == [3 * count, 2 * count]  # the batch shrinks
    assert stats == {"steps": 2, "network_calls": 2, "rows": 5, "judged": 5}
    found = np.bincount(np.asarray(tokens) @ np.asarray([3, 1]), minlength=9) / count
    law = expected_law(3.0)
    assert 0.5 * np.abs(found - law).sum() < bound(law, count)
    assert 0.5 * np.abs(found - expected_law(0.0)).sum() > 0.05


def test_what_is_neither_described_nor_rewarded_keeps_its_law():
    count = 30_000
    stats, selection = {}, scaling.Selection(1, None, None, "none", 3.0)
    tokens = jax.jit(lambda: kept(toy((3, 2), count, selection), stats))()
    assert stats == {"steps": 2, "network_calls": 2, "rows": 5}
    law = (softmax(FIRST)[:, None] * np.asarray(jax.nn.softmax(SECOND, -1))).reshape(-1)
    found = np.bincount(np.asarray(tokens) @ np.asarray([3, 1]), minlength=9) / count
    assert 0.5 * np.abs(found - law).sum() < bound(law, count)


def test_clustered_particles_differ_where_they_can():
    def run():
        seen = []

        def described(k, tokens, state):
            seen.append(tokens[:, 0].reshape(-1, 8))
            return jax.nn.one_hot(tokens[:, 0], 3)

        def best(k, tokens):
            seen.append(tokens[:, 0].reshape(-1, 2))
            return rewarded(k, tokens)

        toy((8, 2), 300, scaling.Selection(1, described, best, "value", 1.0))
        return seen

    before, after = ([len(set(row)) > 1 for row in x.tolist()] for x in jax.jit(run)())
    assert before == after
    assert sum(before) > 250


@functools.cache
def experiment(sides=(1, 4), **sampler):
    """VAR's tiny variant, of few scales."""
    config = var.get_config("tiny")
    config.sampler.update(sampler)
    config.tokenizer.bottleneck.update(sides=sides, phis=1)
    for part in ("encoder", "decoder"):
        config.tokenizer[part].update(width=8, multipliers=(1, 1, 1))
    config.generator.backbone.update(width=16, head_dim=8, mlp_hidden=24)
    return resolve(config)


@functools.cache
def params(sides):
    """Parameters of its parts and of the classifier, all redrawn."""
    exp, image = experiment(sides), jnp.zeros((1, 16, 16, 1))
    judge = lambda key: classifier.network(10).init(key, image)["params"]
    init = {"tokenizer": exp.tokenizer.init, "generator": exp.generator.init, "judge": judge}
    random = np.random.default_rng(0)
    shapes = {name: jax.eval_shape(fn, KEY) for name, fn in init.items()}
    return jax.tree.map(lambda x: 0.3 * random.standard_normal(x.shape, np.float32), shapes)


@functools.cache
def drawn(label, sides=(1, 4), **sampler):
    exp, label = experiment(sides, **sampler), jnp.asarray(label, jnp.int32)
    blank = sampling.blank(exp, len(label))
    tokens, stats = sampling.sampler(exp)(params(sides), label, KEY, blank)
    return np.asarray(tokens), {k: int(v) for k, v in stats.items() if k != "order"}


SIX = (0, 0, 0, 3, 3, 3)


def test_one_particle_is_the_plain_sampler():
    tokens, stats = drawn(SIX, name="tts_var", particles=(1, 1), potential="none")
    np.testing.assert_array_equal(tokens, drawn(SIX)[0])
    assert stats == {"steps": 2, "network_calls": 2, "rows": 2}


def test_of_particles_drawn_like_plain_samples_the_best_is_kept():
    each, exp, net = drawn(SIX)[0], experiment(), classifier.network(10)

    @jax.jit
    def log_prob(params, tokens):
        x = exp.tokenizer.decode(params["tokenizer"], Tokens(ids=tokens))
        logits = net.apply({"params": params["judge"]}, jnp.clip(x, -1.0, 1.0))[0]
        return jax.nn.log_softmax(logits)[jnp.arange(6), jnp.asarray(SIX)]

    best = np.asarray(log_prob(params((1, 4)), each)).reshape(2, 3).argmax(1)
    tokens, stats = drawn((0, 3), name="tts_var", particles=(3, 3))
    np.testing.assert_array_equal(tokens, each.reshape(2, 3, -1)[[0, 1], best])
    assert stats == {"steps": 2, "network_calls": 2, "rows": 6, "judged": 3}


@pytest.mark.slow
@pytest.mark.parametrize("features", ["pca", "pooled", "class", "none"])
def test_particles_of_every_kind(features):
    options = dict(potential="max", strength=2.0, particles=(4, 3, 2), features=features)
    tokens, stats = drawn((0, 3), (1, 2, 4), name="tts_var", **options)
    assert tokens.shape == (2, 21)
    assert stats == {"steps": 3, "network_calls": 3, "rows": 9, "judged": 5}


def test_rewards():
    logits = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [1.0, 1e-9, 1e-9]]))
    found = scaling.class_reward(logits, jnp.asarray([1, 0]))
    np.testing.assert_allclose(found, np.log([0.2, 1.0]), rtol=1e-5, atol=1e-6)
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1))
    found = scaling.certainty(logits, jnp.asarray([1, 0]))
    np.testing.assert_allclose(found, [-entropy, 0.0], rtol=1e-5, atol=1e-6)


def test_who_is_judged():
    assert experiment(name="tts_var").sampler.judged
    assert not experiment(name="tts_var", particles=(1, 1)).sampler.judged
    assert not experiment(name="tts_var", potential="none").sampler.judged
    assert experiment(name="tts_var", potential="none", features="class").sampler.judged
    assert not experiment().sampler.judged
