"""What is trained to draft: its parts against closed answers, and exact draws from a generator."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from nexttok import drafters, views
from nexttok.config import ConfigError
from nexttok.drafters.early_exit import EarlyExit
from nexttok.samplers.drafts.model import from_model
from nexttok.samplers.exactness import bound, total_variation
from nexttok.samplers.logits import warper
from nexttok.samplers.options import OFF, SamplerConfig
from nexttok.samplers.speculative import Outcome, speculate
from nexttok.samplers.verify import Verdict
from nexttok.tokens import Tokens
from tests.generators import make, redrawn

N, COUNT, PLAIN, KEY = 6, 20_000, warper(1.0, 0, 0.0), jax.random.key(0)
GEN = make("llamagen", vocab=2)  # two layers, 2 x 3 tokens
BASE = redrawn(GEN, 1)
LABEL = jnp.asarray([0, 2], jnp.int32)


def section(name, layers=0, guesses=0):
    return common.section(name=name, layers=layers, guesses=guesses)


@functools.cache
def trained(name, scale=1.0, **options):
    """A drafter, and parameters drawn at random."""
    found = drafters.make(section(name, **options), GEN)
    leaves, tree = jax.tree.flatten(found.init(KEY))
    drawn = [
        scale * jax.random.normal(jax.random.fold_in(KEY, i), x.shape) for i, x in enumerate(leaves)
    ]
    return found, jax.tree.unflatten(tree, drawn)


def options(name, **changes):
    return SamplerConfig(name=name, **{k: v for k, v in (OFF | changes).items() if k != "name"})


def strings(batch=2):
    return jax.random.randint(jax.random.key(4), (batch, N), 0, 2)


@functools.cache
def joint(strength):
    """Probabilities of all strings, of class 1, guided at every token."""
    every = jnp.asarray(list(itertools.product(range(2), repeat=N)), jnp.int32)
    lesson = GEN.lesson(Tokens(ids=every), KEY)

    @jax.jit
    def logits(label):
        labels = jnp.full((len(every),), label, jnp.int32)
        return GEN.head.outputs(BASE["head"], GEN.predicted(BASE, lesson, labels))

    logits = logits(-1) + strength * (logits(1) - logits(-1))
    laws = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(laws, every[..., None], axis=-1)[..., 0]
    return np.exp(np.asarray(chosen).sum(1))


EXACT = {
    "draft_3": ("draft", 2.0, {}, dict(window=3)),
    "draft_1": ("draft", 1.0, {}, dict(window=1)),
    "pass_2": ("pass", 2.0, dict(guesses=2), {}),
    "pass_1_of_3": ("pass", 1.0, dict(guesses=3), dict(window=1)),
    "eesd_3": ("eesd", 2.0, dict(layers=1), dict(window=3)),
    "eesd_2_fixed": ("eesd", 1.0, dict(layers=1), dict(window=2, control="fixed")),
    "eagle_3": ("eagle", 2.0, {}, dict(window=3)),
    "eagle_1": ("eagle", 1.0, {}, dict(window=1)),
    "eagle_2_threshold": ("eagle", 2.0, {}, dict(window=2, control="threshold")),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c in ("eagle_3",) else pytest.mark.slow) for c in EXACT],
)
def test_draws_from_the_joint_of_its_generator(case):
    name, strength, choices, changes = EXACT[case]
    labels = jnp.ones((COUNT,), jnp.int32)
    scale = None if strength == 1.0 else lambda at: jnp.full(at.first.shape, strength)
    choice = options(name, **(dict(draft="x") if name == "draft" else {}), **changes)
    own = name != "draft"
    found, params = trained(name, **choices) if own else (None, redrawn(GEN, 2))

    @jax.jit
    def run(key):
        if own:
            drafter = found.guesser(params, BASE, labels, GEN.plan, scale, None, PLAIN, choice)
        else:
            other = views.causal(GEN, params, labels, GEN.plan, scale)
            drafter = from_model(other, PLAIN, choice.guesses)
        halves = own and found.reads_halves
        model = views.causal(GEN, BASE, labels, GEN.plan, scale, None, halves)
        return speculate(model, drafter, PLAIN, COUNT, key)

    drawn, stats = run(jax.random.key(3))
    probs = joint(strength)
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-4)
    assert total_variation(drawn, probs / probs.sum()) < bound(probs / probs.sum(), COUNT)
    assert int(stats["rounds"].max()) <= N
    if name == "pass":  # the first guess of every round is exact
        assert int(stats["rounds"].max()) <= N // 2


def test_an_early_exit_starts_as_layers_of_the_generator():
    """Behind all layers but the last it is the generator, and every guess is kept."""
    drafter = EarlyExit(GEN, 1)
    zeros = drafter.init(KEY)
    assert sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(zeros)) == 0
    few, params = drafter.few, drafter.merged(zeros, BASE)
    tokens = Tokens(ids=strings())
    lesson = GEN.lesson(tokens, KEY)

    @jax.jit
    def both():
        expected, found = GEN.predicted(BASE, lesson, LABEL), few.predicted(params, lesson, LABEL)
        return expected, found, drafter.loss(zeros, BASE, tokens, LABEL, KEY)[1]["kept"]

    expected, found, kept = both()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept, 1.0, rtol=1e-5)
    assert drafter.few.backbone.depth == 2


def test_a_look_ahead_sees_the_tokens_before_it_and_its_own_vectors():
    """Lessons behind a cut are what is asked there in generation, and the next token's own law is
    as without them."""
    found, params = trained("pass", guesses=3)
    ids, cut = strings(), jnp.asarray([[1, 3], [0, 4]], jnp.int32)
    model = views.causal(GEN, BASE, LABEL, GEN.plan)
    held, zero = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1], jnp.zeros((2,), jnp.int32)
    theirs = found.merged(params, BASE)
    read = views.reader(GEN, theirs, LABEL, None, found.network)

    @jax.jit
    def lesson():
        truth, _, cache = model.score(held, None, zero, model.start(2, 6))
        slots, at = found._behind(GEN.plan, cut)
        hidden, _ = read(slots, cache)
        return truth, cache, views.predicted(GEN, theirs, hidden, at, N), at

    truth, cache, taught, at = lesson()
    np.testing.assert_array_equal(at[0], [2, 3, 4, 4, 5, 6])
    drafter = found.guesser(params, BASE, LABEL, GEN.plan, None, None, PLAIN, options("pass"))
    assert (drafter.nodes, drafter.depth) == (5, 4)
    peek = jax.jit(drafter.peek)
    for i in range(2):
        length = cut[:, i]
        last = jnp.take_along_axis(held, length[:, None], axis=1)[:, 0]
        # what lies behind the last token, of a window that was scored, is not seen
        logits, _ = peek(drafter.start(2, KEY), last, length, cache)
        own = jnp.take_along_axis(truth, length[:, None, None], axis=1)[:, 0]
        np.testing.assert_allclose(logits[:, 0], own, rtol=1e-4, atol=1e-4)
        inside = np.asarray(at[:, 3 * i : 3 * i + 3]) < N
        for row, j in np.argwhere(inside):
            wanted = taught[row, 3 * i + j]
            np.testing.assert_allclose(logits[row, 1 + j], wanted, rtol=1e-4, atol=1e-4)


def test_eagle_reads_the_states_of_the_generator_where_it_has_them():
    """After a round its next law is that of teacher forcing, whatever it had guessed."""
    found, params = trained("eagle", 0.3)
    ids, scale = strings(), lambda at: jnp.full(at.first.shape, 1.5)
    lesson = GEN.lesson(Tokens(ids=ids), KEY)

    @jax.jit
    def taught(label):
        hidden = GEN.hidden(BASE, lesson.slots, label)
        before = jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        states, _ = found._read(params, BASE, lesson.slots, label, before)
        return GEN.head.outputs(BASE["head"], states)

    null = taught(jnp.full_like(LABEL, -1))
    expected = jax.nn.softmax(null + 1.5 * (taught(LABEL) - null), axis=-1)
    model = views.causal(GEN, BASE, LABEL, GEN.plan, scale, None, True)
    choice = options("eagle", window=3)
    drafter = found.guesser(params, BASE, LABEL, GEN.plan, scale, None, PLAIN, choice)
    held, rows, nodes = jnp.pad(ids, ((0, 0), (1, 4))), jnp.arange(2), jnp.arange(4)[None]

    @jax.jit
    def one(state, memory, length, accepted):
        """A round, as if so many true tokens had been guessed, and then wrong ones."""
        draft, memory = drafter.propose(memory, held[rows, length], length, KEY)
        true = held[rows[:, None], length[:, None] + nodes]
        wrong = draft._replace(tokens=jnp.where(nodes > accepted[:, None], 1 - true, true))
        _, hidden, state = model.score(wrong.tokens, None, length, state)
        verdict = Verdict(jnp.zeros((2, 3), jnp.int32), accepted, rows)
        after = length + accepted + 1
        outcome = Outcome(wrong, verdict, jnp.zeros((2, 4, 2)), hidden, held, length, after)
        return state, drafter.learn(memory, outcome, KEY), after, draft.laws[:, 0]

    carry = model.start(2, 4), drafter.start(2, KEY), jnp.zeros((2,), jnp.int32)
    for accepted in ([2, 0], [0, 3], [1, 0]):
        at = carry[2]
        *carry, law = one(*carry, jnp.asarray(accepted, jnp.int32))
        np.testing.assert_allclose(law, expected[rows, at], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pass", pytest.param("eesd", marks=pytest.mark.slow), "eagle"])
def test_learns_to_be_kept(name):
    """Some steps by the gradient of its loss lower it."""
    found, params = trained(name, 0.3)
    tokens, label = Tokens(ids=strings(64)), jnp.arange(64) % 3

    @jax.jit
    def step(params, key):
        def mean(params):
            losses, metrics = found.loss(params, BASE, tokens, label, key)
            return losses.mean(), metrics

        (loss, metrics), grads = jax.value_and_grad(mean, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), loss, metrics

    losses = []
    for i in range(30):
        params, loss, metrics = step(params, jax.random.fold_in(KEY, i))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert 0 < float(metrics["kept"]) <= 1.0 + 1e-5


BAD = {
    "name": ("llamagen", dict(name="medusa"), "'' | pass | eesd | eagle"),
    "unread": ("llamagen", dict(name="pass", layers=1), "config.drafter.layers = 1: expected 0"),
    "deep": ("llamagen", dict(name="eesd", layers=3), "config.drafter.layers = 3: expected 0 .. 2"),
    "far": ("llamagen", dict(name="pass", guesses=6), "drafter.guesses = 6: expected 0 .. 5"),
    "context": ("maskgit", dict(name="eagle"), "expected '', as context mask does not draw"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refuses_what_does_not_fit(case):
    name, choices, words = BAD[case]
    with pytest.raises(ConfigError) as error:
        drafters.make(section(**choices), make(name))
    assert words in str(error.value)
