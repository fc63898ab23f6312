"""LANTERN: the nearest codes, the budget, and exactness without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.samplers import exactness
from nexttok.samplers.drafts.model import from_model
from nexttok.samplers.lantern import lantern, nearest_codes
from nexttok.samplers.logits import warper
from nexttok.samplers.speculative import speculate
from nexttok.samplers.verify import trial

PLAIN = warper(1.0, 0, 0.0)
CODES = jax.random.normal(jax.random.key(0), (600, 3))


def test_nearest_codes_are_those_of_all_distances():
    found = np.asarray(nearest_codes(CODES, 5))
    distance = np.linalg.norm(np.asarray(CODES)[:, None] - np.asarray(CODES)[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(found, np.argsort(distance, axis=1)[:, :5])


@pytest.mark.parametrize(
    ("budget", "relative"), [(0.0, False), (0.15, False), (0.8, True), (1.0, False)]
)
def test_the_law_of_a_guess_is_within_the_budget(budget, relative):
    law = jax.nn.softmax(jax.random.normal(jax.random.key(1), (40,)))
    near = nearest_codes(CODES[:40], 10)
    relax = lantern(near, budget, relative)
    for token in range(40):
        mass, rest = relax(law, jnp.asarray(token))
        limit = budget * float(law[token]) if relative else budget
        moved = 0.5 * np.abs(np.asarray(rest - law)).sum()
        assert moved <= limit + 1e-6
        np.testing.assert_allclose(rest.sum(), 1.0, rtol=1e-5)
        np.testing.assert_allclose(mass, rest[token])
        sums = np.cumsum(np.asarray(law)[np.asarray(near[token])])
        count = int((sums <= limit).sum())
        np.testing.assert_allclose(moved, sums[count - 1] if count else 0.0, atol=1e-6)


TABLE, OTHER = (exactness.make_table(jax.random.key(i), 4, 3) for i in range(2))
NEAR = jnp.asarray([[1, 2], [0, 3], [3, 0], [2, 1]], jnp.int32)


def drawn(relax):
    drafter = from_model(exactness.causal(OTHER), PLAIN, 2)
    run = lambda key: speculate(exactness.causal(TABLE), drafter, PLAIN, 50_000, key, relax)
    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0)))


def test_no_budget_is_exact_bit_for_bit():
    np.testing.assert_array_equal(drawn(lantern(NEAR, 0.0))[0], drawn(None)[0])


def slot_law(relax, p, q):
    """The law of one tested slot, in closed form."""
    total = np.zeros(len(p))
    for x in range(len(p)):
        mass, _ = relax(p, jnp.asarray(x))
        accept = min(1.0, float(mass) / float(q[x]))
        _, left = trial(p, q, jnp.asarray(x), jnp.asarray(1.0), relax)
        total[x] += float(q[x]) * accept
        total += float(q[x]) * (1.0 - accept) * np.asarray(left)
    return total


def test_what_is_drawn_moves_away_from_the_law_as_the_budget_grows():
    p, q = (jax.nn.softmax(t.logits[0]) for t in (TABLE, OTHER))
    moved, kept = [], []
    for budget in (0.0, 0.1, 0.3, 0.9):
        relax = lantern(NEAR, budget)
        law = slot_law(relax, p, q)
        np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-5)
        moved.append(0.5 * np.abs(law - np.asarray(p)).sum())
        kept.append(drawn(relax)[1]["accepted"].mean())
    assert moved[0] < 1e-6
    assert moved == sorted(moved)
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]
