"""Confidence-parallel decoding against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maskgit
from nexttok import sampling
from nexttok.causal import Masked
from nexttok.experiment import resolve
from nexttok.samplers.logits import warper
from nexttok.samplers.parallel import reveal, sure
from tests.generators import redrawn

PLAIN, GREEDY = warper(1.0, 0, 0.0), warper(0.0, 0, 0.0)
N, V = 4, 2
STRINGS = np.asarray(list(itertools.product(range(V), repeat=N)))


def oracle(joint):
    """The true marginals of hidden tokens given the others, by enumeration."""
    joint, strings = jnp.asarray(joint, jnp.float32), jnp.asarray(STRINGS)

    def predict(tokens, hidden):
        match = (strings[None] == tokens[:, None]) | hidden[:, None]
        weight = jnp.where(match.all(-1), joint[None], 0.0)
        onehot = jax.nn.one_hot(strings, V)
        probs = jnp.einsum("bs,snv->bnv", weight, onehot)
        return jnp.log(probs / probs.sum(-1, keepdims=True))

    return Masked(N, V, predict)


def test_which_tokens_are_sure():
    c = jnp.asarray([[0.95, 0.5, 0.92, 0.99], [0.2, 0.3, 0.1, 0.25]])
    hidden = jnp.asarray([[True, True, True, False], [True] * 4])
    found = sure(c, hidden, 0.9, 0.0)
    assert found.tolist() == [[True, False, True, False], [False, True, False, False]]
    # (1 + 1) 0.05 < 0.2 and (2 + 1) 0.08 >= 0.2
    assert sure(c, hidden, 0.9, 0.2)[0].tolist() == [True, False, False, False]
    assert sure(c, hidden, 0.9, 0.25)[0].tolist() == [True, False, True, False]


def test_a_threshold_above_one_reveals_one_token_a_call():
    joint = np.random.default_rng(0).dirichlet(np.ones(V**N))
    _, stats = reveal(oracle(joint), PLAIN, 30, jax.random.key(0), 1.1)
    assert int(stats["network_calls"]) == N
    np.testing.assert_array_equal(stats["rounds"], N)


def test_independent_tokens_are_revealed_at_once_and_exactly():
    rows = np.asarray([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    joint = np.prod(rows[np.arange(N), STRINGS], axis=1)
    tokens, stats = reveal(oracle(joint), PLAIN, 40_000, jax.random.key(1), 1e-6)
    assert int(stats["network_calls"]) == 1
    ones = np.asarray(tokens).mean(0)
    np.testing.assert_allclose(ones, rows[:, 1], atol=4 * 0.5 / np.sqrt(40_000))


@pytest.mark.parametrize("seed", range(4))
def test_where_the_theorem_holds_parallel_greedy_is_the_best_string(seed):
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.ones(V**N)) * 0.18  # every marginal of the best is above 0.8
    best = int(rng.integers(V**N))
    joint[best] += 0.82
    tokens, stats = reveal(oracle(joint), GREEDY, 1, jax.random.key(0), 0.8)
    assert int(stats["network_calls"]) == 1
    assert tokens[0].tolist() == STRINGS[best].tolist()


def test_beyond_it_parallel_greedy_can_be_wrong():
    joint = np.zeros(V**N)  # each marginal prefers 0, but 0000 never is
    joint[[1, 2, 4, 8]] = 0.25
    together, _ = reveal(oracle(joint), GREEDY, 1, jax.random.key(0), 0.7)
    one, _ = reveal(oracle(joint), GREEDY, 1, jax.random.key(0), 1.1)
    assert together[0].tolist() == [0, 0, 0, 0]
    assert joint[int("".join(map(str, one[0].tolist())), 2)] == 0.25


def test_a_masked_generator():
    config = maskgit.get_config("tiny")
    config.sampler.update(name="parallel", threshold=0.3)
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator, 2)}
    label, blank = jnp.arange(4, dtype=jnp.int32), sampling.blank(exp, 4)
    tokens, stats = sampling.sampler(exp)(params, label, jax.random.key(0), blank)
    assert tokens.shape == (4, 16)
    assert stats["rounds"].max() == stats["network_calls"] <= 16
