"""Searches against enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import views
from nexttok.config import ConfigError
from nexttok.samplers import exactness
from nexttok.samplers.logits import warper
from nexttok.samplers.search import assigned, beams, contrastive_search
from tests.generators import make, params_of

VOCAB, TOKENS = 3, 4
TABLE = exactness.make_table(jax.random.key(0), VOCAB, TOKENS)
MODEL = exactness.causal(TABLE)
PLAIN, GREEDY = warper(1.0, 0, 0.0), warper(0.0, 0, 0.0)
PROBS = exactness.joint(TABLE, PLAIN)
BEST = np.argsort(-PROBS)


def codes(strings):
    return np.asarray(strings) @ (VOCAB ** np.arange(TOKENS - 1, -1, -1))


def test_wide_beams_find_the_likeliest_strings():
    strings, log_prob = beams(MODEL, PLAIN, 2, VOCAB ** (TOKENS - 1))
    np.testing.assert_array_equal(codes(strings[0]), BEST[: VOCAB ** (TOKENS - 1)])
    np.testing.assert_array_equal(strings[0], strings[1])
    np.testing.assert_allclose(np.exp(log_prob[0]), PROBS[codes(strings[0])], rtol=1e-4)


def test_one_beam_is_greedy():
    strings, _ = beams(MODEL, PLAIN, 1, 1)
    assert codes(strings[0])[0] == np.argmax(exactness.joint(TABLE, GREEDY))


def test_groups_without_a_penalty_are_the_same_search_and_with_one_they_differ():
    alone, _ = beams(MODEL, PLAIN, 1, 2)
    same, _ = beams(MODEL, PLAIN, 1, 6, 3, 0.0)
    found = sorted(codes(same[0]).tolist())
    assert found == sorted(codes(alone[0]).tolist() * 3)
    apart, log_prob = beams(MODEL, PLAIN, 1, 3, 3, 1e4)
    for place in range(TOKENS):  # no two groups choose one token at the same place
        assert sorted(np.asarray(apart[0, :, place]).tolist()) == [0, 1, 2]
    np.testing.assert_allclose(np.exp(log_prob[0]), PROBS[codes(apart[0])], rtol=1e-4)
    assert (np.diff(log_prob[0]) <= 0).all()


def test_stochastic_beams_are_a_draw_without_replacement():
    table = exactness.make_table(jax.random.key(4), 2, 3)
    probs, count = exactness.joint(table, PLAIN), 20_000
    strings, log_prob = jax.jit(
        lambda key: beams(exactness.causal(table), PLAIN, count, 2, rng=key)
    )(jax.random.key(1))
    found = np.asarray(strings) @ np.asarray([4, 2, 1])
    pairs = np.bincount(found[:, 0] * 8 + found[:, 1], minlength=64) / count
    expected = np.asarray(
        [
            probs[a] * probs[b] / (1 - probs[a]) if a != b else 0.0
            for a in range(8)
            for b in range(8)
        ]
    )
    assert 0.5 * np.abs(pairs - expected).sum() < exactness.bound(expected, count)
    np.testing.assert_allclose(np.exp(log_prob), probs[found], rtol=1e-4)


@pytest.mark.parametrize("guided", [False, True])
def test_beams_of_a_generator_are_its_likeliest_strings(guided):
    name = "llamagen"
    gen, params, label = make(name), params_of(name), jnp.asarray([1, 2], jnp.int32)
    short = gen.plan.prefix(3) if gen.spec.nested else gen.plan
    scale = (lambda at: jnp.asarray(1.5)) if guided else None
    rows = jnp.repeat(label, 6)
    model = views.causal(gen, params, rows, short, scale)
    strings, log_prob = jax.jit(lambda: beams(model, PLAIN, 2, 6))()
    one = views.causal(gen, params, rows, short, scale)
    given = jnp.pad(strings.reshape(12, -1), ((0, 0), (1, 0)))[:, :-1]
    logits, _, _ = one.score(given, None, jnp.zeros(12, jnp.int32), one.start(12, given.shape[1]))
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), strings.reshape(12, -1)[..., None], -1)
    np.testing.assert_allclose(picked.sum((1, 2)).reshape(2, 6), log_prob, rtol=1e-4, atol=1e-4)
    assert all(len(np.unique(np.asarray(row), axis=0)) == 6 for row in strings)


def with_hidden(vectors):
    """The table, whose hidden states are a vector per token."""

    def score(tokens, parents, length, state):
        logits, _, state = MODEL.score(tokens, parents, length, state)
        return logits, jnp.asarray(vectors, jnp.float32)[tokens], state

    return dataclasses.replace(MODEL, score=score)


def reference(alpha, k, vectors):
    """Contrastive search, written down for a table."""
    rows = np.asarray(jax.nn.softmax(TABLE.logits, -1), np.float64)
    firsts = np.cumsum([0, *(VOCAB**i for i in range(TOKENS))])
    unit = np.asarray(vectors) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    string, seen, prefix = [], [unit[0]], 0
    for i in range(TOKENS):
        p = rows[firsts[i] + prefix]
        ids = np.argsort(-p)[:k]
        scores = [(1 - alpha) * p[v] - alpha * max(float(unit[v] @ s) for s in seen) for v in ids]
        token = int(ids[int(np.argmax(scores))])
        string.append(token)
        seen.append(unit[token])
        prefix = prefix * VOCAB + token
    return string


@pytest.mark.parametrize(("alpha", "k"), list(itertools.product([0.0, 0.3, 0.6], [1, 2, 3])))
def test_contrastive_search(alpha, k):
    vectors = np.asarray([[1.0, 0.2], [0.3, 1.0], [-0.5, 0.4]])
    found = contrastive_search(with_hidden(vectors), PLAIN, 2, k, alpha)
    assert found.tolist() == [reference(alpha, k, vectors)] * 2
    if alpha == 0 or k == 1:
        assert codes(found)[0] == np.argmax(exactness.joint(TABLE, GREEDY))


def test_tokens_that_the_warp_drops_are_no_candidates():
    found = contrastive_search(MODEL, GREEDY, 1, VOCAB, 1.0)
    assert codes(found)[0] == np.argmax(exactness.joint(TABLE, GREEDY))


def test_rows_of_a_class_share_searches():
    labels, search, place = assigned(jnp.asarray([1, 0, 1, 1, 2, 1, 1]), 2, 3)
    assert place.tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert search.tolist() == [0, 1, 0, 2, 3, 2, 4]
    assert labels.tolist() == [1, 0, 1, 2, 1, 0]  # the last one is not needed
    labels, search, place = assigned(jnp.asarray([0, 1, 2]), 1, 3)
    assert (labels.tolist(), search.tolist(), place.tolist()) == ([0, 1, 2], [0, 1, 2], [0, 0, 0])


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"sampler.groups = 4: expected a divisor of 6 beams"):
        beams(MODEL, PLAIN, 1, 6, 4)
    with pytest.raises(ConfigError, match="1 in a stochastic search"):
        beams(MODEL, PLAIN, 1, 6, 2, rng=jax.random.key(0))
    with pytest.raises(ConfigError, match=r"sampler.candidates = 4: expected 1 .. 3"):
        contrastive_search(MODEL, PLAIN, 1, 4)
