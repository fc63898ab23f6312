"""A generator as a causal model: windows, trees and places apart equal teacher forcing; samplers
draw from its joint."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import views
from nexttok.causal import ancestry
from nexttok.samplers.drafts.jacobi import jacobi
from nexttok.samplers.exactness import bound, total_variation
from nexttok.samplers.logits import warper
from nexttok.samplers.speculative import speculate
from nexttok.tokens import Tokens
from tests.generators import make, params_of

LABEL = jnp.asarray([0, 2], jnp.int32)
NAMES = ("flextok", "llamagen", "qk_norm_rms")  # positions learned or rotary


def taught(name, tokens, label):
    """Logits of every token, teacher-forced."""
    gen, params = make(name), params_of(name)
    lesson = gen.lesson(Tokens(ids=tokens), jax.random.key(0))
    return gen.head.outputs(params["head"], gen.predicted(params, lesson, label))


def causal(name, scale=None, label=LABEL):
    gen = make(name)
    return views.causal(gen, params_of(name), label, gen.plan, scale)


def some_tokens(name, batch=2):
    n, vocab = make(name).plan.length, make(name).spec.vocab
    return jax.random.randint(jax.random.key(4), (batch, n), 0, vocab)


@pytest.mark.parametrize(
    ("name", "guided"), [("flextok", True), ("llamagen", False), ("qk_norm_rms", True)]
)
def test_ragged_windows_equal_teacher_forcing(name, guided):
    tokens = some_tokens(name)
    expected = taught(name, tokens, LABEL)
    scale = None
    if guided:
        scale = lambda at: 1.0 + 0.5 * at.first.astype(jnp.float32)
        null = taught(name, tokens, jnp.full_like(LABEL, -1))
        strength = 1.0 + 0.5 * jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :, None]
        expected = null + strength * (expected - null)
    model = causal(name, scale)
    held = jnp.pad(tokens, ((0, 0), (1, 3)))
    state, length = model.start(2, 3), jnp.zeros((2,), jnp.int32)
    score = jax.jit(model.score, static_argnums=1)
    for step in ((1, 3), (2, 1), (2, 1), (1, 1)):
        window = jax.vmap(lambda row, at: jax.lax.dynamic_slice(row, (at,), (3,)))(held, length)
        logits, hidden, state = score(window, None, length, state)
        assert hidden.shape[:2] == (2, 3)
        for row, slot in itertools.product(range(2), range(3)):
            at = int(length[row]) + slot
            if at < tokens.shape[1]:
                np.testing.assert_allclose(
                    logits[row, slot], expected[row, at], rtol=1e-4, atol=1e-4
                )
        # what a round leaves uncommitted is overwritten by the next
        length = length + jnp.asarray(step)
        held = held.at[:, 0].set(0)


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_tree_equals_the_chains_it_holds_and_can_be_kept(name):
    model, vocab = causal(name), make(name).spec.vocab
    parents = jnp.asarray([[-1, 0, 0, 1, 2, 4], [-1, 0, 1, 1, 3, 2]], jnp.int32)
    tree = jax.random.randint(jax.random.key(1), (2, 6), 0, vocab).at[:, 0].set(3)
    path = jnp.asarray([[2, 4, -1], [1, 3, 4]], jnp.int32)  # of one row two nodes, of one three
    length, start = jnp.asarray([1, 1]), model.start(2, 6)
    first, _, state = model.score(jnp.zeros((2, 1), jnp.int32), None, jnp.zeros(2, int), start)
    logits, _, state = model.score(tree, parents, length, state)
    depth, among = ancestry(parents)
    strings = jnp.zeros((2, make(name).plan.length), jnp.int32).at[:, 0].set(3)
    np.testing.assert_allclose(
        first[:, 0], taught(name, strings, LABEL)[:, 0], rtol=1e-4, atol=1e-4
    )
    for row, node in itertools.product(range(2), range(6)):
        line = [n for n in range(6) if among[row, node, n]]
        assert len(line) == int(depth[row, node]) + 1
        string = strings.at[row, : len(line)].set(tree[row, jnp.asarray(line)])
        expected = taught(name, string, LABEL)[row, len(line)]
        np.testing.assert_allclose(logits[row, node], expected, rtol=1e-4, atol=1e-4)
    state = model.keep(state, length, path)
    kept = (path >= 0).sum(1)
    for row in range(2):
        at = [0, *np.asarray(path[row][: kept[row]])]
        strings = strings.at[row, : len(at)].set(tree[row, jnp.asarray(at)])
    length = length + kept + 1
    new = jnp.asarray([[1], [2]], jnp.int32)  # drawn behind the path
    strings = strings.at[jnp.arange(2), length - 1].set(new[:, 0])
    logits, _, _ = model.score(new, None, length, state)
    for row in range(2):
        if int(length[row]) < strings.shape[1]:
            expected = taught(name, strings, LABEL)[row, int(length[row])]
            np.testing.assert_allclose(logits[row, 0], expected, rtol=1e-4, atol=1e-4)


def test_places_apart_see_what_was_scored_before_them():
    name = "llamagen"
    model, tokens = causal(name), some_tokens(name)
    held, n = jnp.pad(tokens, ((0, 0), (1, 0))), tokens.shape[1]
    expected, state = taught(name, tokens, LABEL), model.start(2, 4)
    for places in ((2, n + 3, 0, 1), (5, n + 1, 3, 4)):  # slots beyond the end pad
        at = jnp.broadcast_to(jnp.asarray(places)[None], (2, 4))
        given = jnp.take_along_axis(held, jnp.minimum(at, n - 1), 1)
        logits, _, state = model.score(given, None, at, state)
        for i in (0, 2, 3):
            np.testing.assert_allclose(logits[:, i], expected[:, places[i]], rtol=1e-4, atol=1e-4)


def test_jacobi_draws_from_the_joint_of_a_generator():
    gen = make("llamagen", vocab=2)
    params, count = params_of("llamagen"), 20_000
    params = jax.tree.map(lambda x: x, params)
    params["backbone"]["embed"]["embedding"] = params["backbone"]["embed"]["embedding"][:2]
    params["head"]["logits"]["kernel"] = 3.0 * params["head"]["logits"]["kernel"][:, :2]
    every = jnp.asarray(list(itertools.product(range(2), repeat=6)), jnp.int32)
    label = jnp.ones((64,), jnp.int32)
    probs = np.exp(-np.asarray(gen.loss(params, Tokens(ids=every), label, None)[0]).sum(1))
    warp, labels = warper(1.0, 0, 0.0), jnp.ones((count,), jnp.int32)

    @jax.jit
    def run(key):
        model = views.causal(gen, params, labels, gen.plan)
        return speculate(model, jacobi(6, 2, 3, "repeat_above", 3), warp, count, key)

    strings, stats = run(jax.random.key(0))
    assert float(stats["rounds"].mean()) < 5
    assert total_variation(strings, probs / probs.sum()) < bound(probs / probs.sum(), count)


@pytest.mark.parametrize(
    ("name", "words"),
    [("maskgit", "context mask"), ("givt", "head gmm"), ("nbp", "context block"), ("llamagen", "")],
)
def test_says_why_a_generator_is_not_causal(name, words):
    found = views.causal_refusal(make(name))
    assert words in found
    assert bool(words) == bool(found)
