"""Control at the logits: closed forms, bounds, and control composed with lossless samplers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.samplers import control, exactness
from nexttok.samplers.compose import constrained, steered
from nexttok.samplers.drafts.distinct import branching
from nexttok.samplers.drafts.jacobi import jacobi
from nexttok.samplers.drafts.model import from_model
from nexttok.samplers.logits import entropy_top_k, top_k, typical, warper
from nexttok.samplers.speculative import speculate

A, B, C = (2.0 * jax.random.normal(jax.random.key(i), (6, 9)) for i in range(3))
PLAIN = warper(1.0, 0, 0.0)


def softmax(x):
    return np.asarray(jax.nn.softmax(x, axis=-1), np.float64)


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9])
def test_typical_is_the_smallest_set_of_typical_tokens(mass):
    kept = np.isfinite(np.asarray(typical(A, mass)))
    for p, found in zip(softmax(A), kept, strict=True):
        far = np.abs(-np.log(p) + (p * np.log(p)).sum())
        order = np.argsort(far)
        before = np.cumsum(p[order]) - p[order]
        np.testing.assert_array_equal(np.sort(np.flatnonzero(found)), np.sort(order[before < mass]))


def test_typical_ends():
    uniform = jnp.zeros((1, 8))
    assert np.isfinite(np.asarray(typical(uniform, 0.2))).all()  # tied tokens survive together
    sure = jnp.asarray([[0.0, 100.0, -jnp.inf]])
    assert np.isfinite(np.asarray(typical(sure, 0.9))).tolist() == [[False, True, False]]


def test_entropy_top_k_follows_the_entropy():
    flat, sharp = jnp.zeros((1, 5000)), jnp.zeros((1, 5000)).at[0, 3].set(50.0)
    assert (
        int(np.isfinite(np.asarray(entropy_top_k(sharp + 1e-3 * jnp.arange(5000.0)[None]))).sum())
        == 14
    )
    assert np.isfinite(np.asarray(entropy_top_k(flat))).all()  # ties
    for row in A:
        p = softmax(row)
        share = 1.0 / (1.0 + np.exp(5.0 + (p * np.log(p)).sum()))
        k = round(1 + 8 * share)
        expected = top_k(row[None], k)[0]
        np.testing.assert_array_equal(entropy_top_k(row[None], 1, 9)[0], expected)


def test_contrastive_decoding():
    found = np.asarray(control.contrastive(A, B, 0.1))
    p, q = softmax(A), softmax(B)
    kept = p >= 0.1 * p.max(-1, keepdims=True)
    np.testing.assert_array_equal(np.isfinite(found), kept)
    np.testing.assert_allclose(found[kept], np.log(p / q)[kept], rtol=1e-3, atol=1e-4)
    third = np.isfinite(np.asarray(control.contrastive(A, B, 1.0, 3)))
    assert (third.sum(-1) == 3).all()
    same = np.asarray(control.contrastive(A, A, 0.0))
    np.testing.assert_allclose(softmax(same), 1 / 9, atol=1e-6)


def test_collaborative_decoding_ends_at_its_models():
    np.testing.assert_allclose(control.collaborative(A, B, 1.0, 0.0), B, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(control.collaborative(A, B, 0.0, 0.0), A)
    kept = np.isfinite(np.asarray(control.collaborative(A, B, 0.5, 0.1)))
    q = softmax(B)
    np.testing.assert_array_equal(kept, q >= 0.1 * q.max(-1, keepdims=True))
    np.testing.assert_allclose(control.proxy(A, B, C, 0.0), A)
    np.testing.assert_allclose(control.proxy(A, B, B, 3.0), A)
    np.testing.assert_array_equal(control.unsure(A, 0.5), softmax(A).max(-1) < 0.5)


def test_gedi_is_bayes_rule():
    zero = (jnp.zeros(6), jnp.zeros(6))
    np.testing.assert_allclose(
        softmax(control.gedi(A, B, C, zero, 1, 0.0, 0.0)), softmax(A), rtol=1e-5
    )
    np.testing.assert_allclose(
        softmax(control.gedi(A, B, B, zero, 7, mass=0.0)), softmax(A), rtol=1e-4
    )
    past = jnp.linspace(-3.0, -1.0, 6), jnp.linspace(-1.0, -2.0, 6)
    good, bad = (
        np.exp(np.asarray(v))[:, None] * softmax(x) for v, x in zip(past, (B, C), strict=True)
    )
    expected = softmax(A) * (good / (good + bad)) ** 2.0
    found = softmax(control.gedi(A, B, C, past, 1, 2.0, 0.0))
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-3)
    kept = np.isfinite(np.asarray(control.gedi(A, B, C, past, 1, 2.0, 0.8)))
    share = good / (good + bad)
    for row in range(6):
        order = np.argsort(share[row])
        sums = np.cumsum(found[row][order])
        drop = order[(sums < 0.8) & (share[row][order] < 0.8)]
        assert not kept[row, drop].any()
        assert kept[row].sum() == 9 - len(drop)


@pytest.mark.parametrize("kind", ["max", "kl"])
def test_near_access_free_laws_keep_their_bound(kind):
    logits, bits = control.near_access_free(A, B, kind)
    p, bits = softmax(logits), np.asarray(bits)
    for q in (softmax(A), softmax(B)):
        gap = np.log2(p / q)
        worst = gap.max(-1) if kind == "max" else (p * gap).sum(-1)
        assert (worst <= bits + 1e-5).all()
    if kind == "max":
        tv = 0.5 * np.abs(softmax(A) - softmax(B)).sum(-1)
        np.testing.assert_allclose(bits, -np.log2(1.0 - tv), rtol=1e-4)
    same, none = control.near_access_free(A, A, kind)
    np.testing.assert_allclose(softmax(same), softmax(A), rtol=1e-4)
    np.testing.assert_allclose(none, 0.0, atol=1e-5)


def test_smooth_cp_k_bounds_what_it_keeps():
    p, q = softmax(A[0]), softmax(jnp.stack([B[0], C[0]]))
    keep = np.asarray(control.access_free_acceptance(jnp.log(p), jnp.log(q), 1.0))
    np.testing.assert_allclose(keep, np.minimum(1.0, 2.0 * q.min(0) / p), rtol=1e-4)
    law, rate = p * keep / (p * keep).sum(), (p * keep).sum()
    assert (np.log2(law / q) <= 1.0 + np.log2(1.0 / rate) + 1e-5).all()


VOCAB, TOKENS, COUNT = 3, 4, 40_000
TABLES = [exactness.make_table(jax.random.key(i), VOCAB, TOKENS) for i in range(3)]
MODELS = [exactness.causal(t) for t in TABLES]
# an automaton of strings with an even number of ones: two states, the first accepting
PARITY = jnp.asarray([[0, 1, 0], [1, 0, 1]], jnp.int32)
EVEN = jnp.asarray([True, False])


def total_variation_of(model, drafter, probs):
    run = jax.jit(lambda key: speculate(model, drafter, PLAIN, COUNT, key)[0])
    strings = np.asarray(run(jax.random.key(3)))
    return strings, exactness.total_variation(strings, probs), exactness.bound(probs, COUNT)


def test_a_steered_model_is_drawn_from_exactly():
    model = steered(MODELS, control.proxy)
    mixed = control.proxy(*(t.logits for t in TABLES))
    probs = exactness.joint(exactness.Table(mixed, TOKENS), PLAIN)
    _, found, bound = total_variation_of(model, from_model(MODELS[1], PLAIN, 2), probs)
    assert found < bound
    with pytest.raises(ConfigError, match="models of the same number"):
        steered([MODELS[0], exactness.causal(exactness.make_table(jax.random.key(0), 2, 4))], max)


@pytest.mark.parametrize("kind", ["jacobi", "tree"])
def test_a_constrained_model_draws_legal_strings_by_its_law(kind):
    tables = control.live(PARITY, EVEN, TOKENS)
    model = constrained(MODELS[0], tables, 0)
    drafter = jacobi(TOKENS, VOCAB, 3, "random", 0)
    if kind == "tree":
        drafter = branching(MODELS[1], PLAIN, (2, 2))
    probs, rows = np.zeros(VOCAB**TOKENS), softmax(TABLES[0].logits)
    firsts = np.cumsum([0, *(VOCAB**i for i in range(TOKENS))])
    for code, string in enumerate(itertools.product(range(VOCAB), repeat=TOKENS)):
        total, prefix, ones = 1.0, 0, 0
        for i, token in enumerate(string):
            p = rows[firsts[i] + prefix]
            last = i == TOKENS - 1
            free = [not last or (ones + (v == 1)) % 2 == 0 for v in range(VOCAB)]
            total *= p[token] * free[token] / (p * free).sum()
            prefix, ones = prefix * VOCAB + token, ones + (token == 1)
        probs[code] = total
    strings, found, bound = total_variation_of(model, drafter, probs)
    assert (((strings == 1).sum(1) % 2) == 0).all()
    assert found < bound


def test_live_tables_lead_to_an_end():
    short = control.live(
        jnp.asarray([[1], [2], [-1]], jnp.int32), jnp.asarray([False, False, True]), 2
    )
    assert short.tolist() == [[[1], [-1], [-1]], [[-1], [2], [-1]]]
