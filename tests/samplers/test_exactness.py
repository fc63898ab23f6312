"""The law of lossless samplers: strings follow the known joint of a table within sampling error."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.causal import Causal
from nexttok.samplers import exactness
from nexttok.samplers.drafts import distinct, ngram
from nexttok.samplers.drafts.jacobi import INITS, jacobi
from nexttok.samplers.drafts.lookahead import lookahead
from nexttok.samplers.drafts.model import from_model, thompson, threshold
from nexttok.samplers.gumbel import conditioned
from nexttok.samplers.logits import warper
from nexttok.samplers.speculative import speculate
from nexttok.samplers.verify import Draft, trial, verify

VOCAB, TOKENS, COUNT = 3, 4, 50_000
TABLE = exactness.make_table(jax.random.key(0), VOCAB, TOKENS)
OTHER = exactness.make_table(jax.random.key(1), VOCAB, TOKENS)
GUIDED = TABLE.guided(OTHER, 1.7)
SMALL = exactness.causal(OTHER)
PLAIN, WARPED, GREEDY = warper(1.0, 0, 0.0), warper(0.6, 2, 0.0), warper(0.0, 0, 0.0)
SOME = np.random.default_rng(0).integers(0, VOCAB, (30, TOKENS))
COUNTS = ngram.count(SOME, VOCAB, 2)


def ahead(table, count):
    """A look ahead whose laws but the first are some of another table."""

    def look(last, length, state):
        window = jnp.pad(last[:, None], ((0, 0), (0, count)))
        other = SMALL.score(window, None, length, state)[0]
        logits, _, state = exactness.causal(table).score(window, None, length, state)
        return jnp.concatenate([logits[:, :1], other[:, 1:]], axis=1), state

    return lambda warp: lookahead(look, warp, count, VOCAB)


def corrected(guesses, control=None):
    """A drafter whose laws depend on what the model that verifies has found."""

    def start(batch, room):
        return SMALL.start(batch, room + guesses), jnp.zeros((batch,))

    def score(tokens, parents, length, state):
        logits, hidden, held = SMALL.score(tokens, parents, length, state[0])
        rising = jnp.arange(VOCAB, dtype=jnp.float32)[None, None]
        logits = logits + 3.0 * state[1][:, None, None] * rising
        return logits, hidden, (held, jax.nn.softmax(logits[:, -1], axis=-1)[:, 1])

    def correct(state, outcome):
        guesses = outcome.draft.tokens[:, 1:]
        held = SMALL.score(guesses, None, outcome.before + 1, state[0])[2]
        found = outcome.probs[jnp.arange(len(guesses)), outcome.verdict.accepted]
        return held, found[:, 0]

    model = Causal(TOKENS, VOCAB, start, score)
    return lambda warp: from_model(model, warp, guesses, control, correct)


# name: (table, warp, drafter of a warp)
LOSSLESS = {
    **{
        f"jacobi_{init}_{window}": (
            TABLE, PLAIN, lambda warp, w=window, i=init: jacobi(TOKENS, VOCAB, w, i, 2))
        for init, window in [*zip(INITS, (1, 2, 3, 2, 1), strict=True), ("sample_left", 3)]
    },
    "jacobi_guided": (GUIDED, PLAIN, lambda warp: jacobi(TOKENS, VOCAB, 3, "random", 0)),
    "jacobi_warped": (TABLE, WARPED, lambda warp: jacobi(TOKENS, VOCAB, 2, "repeat_left", 0)),
    "model_1": (TABLE, PLAIN, lambda warp: from_model(SMALL, warp, 1)),
    "model_3": (TABLE, PLAIN, lambda warp: from_model(SMALL, warp, 3)),
    "model_warped": (TABLE, WARPED, lambda warp: from_model(SMALL, warp, 2)),
    "model_of_another_warp": (TABLE, WARPED, lambda warp: from_model(SMALL, PLAIN, 2)),
    "model_guided": (GUIDED, PLAIN, lambda warp: from_model(SMALL, warp, 2)),
    "ngram_1_1": (TABLE, PLAIN, lambda warp: ngram.ngram(COUNTS, VOCAB, (1, 1))),
    "ngram_2_2": (GUIDED, WARPED, lambda warp: ngram.ngram(COUNTS, VOCAB, (2, 2))),
    "threshold": (TABLE, PLAIN, lambda warp: from_model(SMALL, warp, 3, threshold(most=3))),
    "thompson": (TABLE, PLAIN, lambda warp: from_model(SMALL, warp, 3, thompson())),
    "ahead_1": (TABLE, PLAIN, ahead(TABLE, 1)),
    "ahead_2_guided": (GUIDED, WARPED, ahead(GUIDED, 2)),
    "ahead_3": (TABLE, PLAIN, ahead(TABLE, 3)),
    "corrected_1": (TABLE, WARPED, corrected(1)),
    "corrected_2_guided": (GUIDED, PLAIN, corrected(2)),
    "corrected_3": (TABLE, PLAIN, corrected(3, thompson())),
    "branching_2_2": (TABLE, PLAIN, lambda warp: distinct.branching(SMALL, warp, (2, 2))),
    "branching_3_1": (TABLE, PLAIN, lambda warp: distinct.branching(SMALL, warp, (3, 1))),
    "branching_warped": (TABLE, WARPED, lambda warp: distinct.branching(SMALL, warp, (3, 2))),
    "beams_2_3": (TABLE, PLAIN, lambda warp: distinct.beams(SMALL, warp, 2, 3)),
    "beams_warped": (GUIDED, WARPED, lambda warp: distinct.beams(SMALL, warp, 3, 2)),
}  # fmt: skip


# one of each kind runs always, the other settings with the slow tests
QUICK = (
    "jacobi_random_1", "jacobi_sample_above_1", "jacobi_guided", "model_3", "threshold",
    "ngram_2_2", "model_of_another_warp", "branching_2_2", "beams_2_3", "ahead_2_guided",
    "corrected_3",
)  # fmt: skip
SETTINGS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LOSSLESS
]


@functools.cache
def drawn(name, warp=None, count=COUNT):
    """Strings and stats of a sampler."""
    table, own, drafter = LOSSLESS[name]
    warp = own if warp is None else warp
    model = exactness.causal(table)
    run = jax.jit(lambda key: speculate(model, drafter(warp), warp, count, key))
    return jax.tree.map(np.asarray, run(jax.random.key(5)))


@pytest.mark.parametrize("name", SETTINGS)
def test_strings_follow_the_joint(name):
    table, warp, _ = LOSSLESS[name]
    probs = exactness.joint(table, warp)
    found = exactness.total_variation(drawn(name)[0], probs)
    assert found < exactness.bound(probs, COUNT)


@pytest.mark.parametrize("name", SETTINGS)
def test_rounds_are_at_most_tokens_and_rows_are_ragged(name):
    strings, stats = drawn(name)
    assert stats["rounds"].max() == stats["network_calls"] <= TOKENS
    # where all that can be drawn is among the guesses, each round accepts a whole path; a look one
    # token ahead draws two or three tokens a round, four in two
    alike = name in ("branching_3_1", "branching_warped", "ahead_1")
    assert (stats["rounds"].min() == stats["rounds"].max()) == alike
    # every round but, maybe, the last draws one token beside those accepted
    bonus = TOKENS - stats["accepted"]
    assert ((bonus == stats["rounds"]) | (bonus == stats["rounds"] - 1)).all()
    assert strings.min() >= 0
    assert strings.max() < VOCAB


@pytest.mark.parametrize("name", ["jacobi_random_1", "model_3", "branching_2_2"])
def test_greedy_decoding_is_that_of_one_token_a_call(name):
    strings, _ = drawn(name, GREEDY, 20)
    best = int(np.argmax(exactness.joint(TABLE, GREEDY)))
    expected = [best // VOCAB**i % VOCAB for i in reversed(range(TOKENS))]
    np.testing.assert_array_equal(strings, np.tile(expected, (20, 1)))


def test_counts_are_those_of_the_strings():
    strings = np.asarray([[0, 1, 2, 1], [0, 1, 2, 0], [2, 1, 0, 1], [0, 1, 1, 1]])
    table = ngram.count(strings, 3, 2)
    # of 0 1: 2 twice, 1 once; 1 0: 1; 1 1: 1; 1 2: 0 and 1; 2 1: 0
    assert table.pairs.tolist() == [1, 3, 4, 5, 7]
    assert table.successors.tolist() == [[2, 1], [1, -1], [1, -1], [0, 1], [0, -1]]


def test_a_model_that_drafts_for_itself_is_always_accepted():
    model = exactness.causal(TABLE)
    run = jax.jit(lambda key: speculate(model, from_model(model, PLAIN, 3), PLAIN, 500, key))
    _, stats = run(jax.random.key(2))
    assert int(stats["rounds"].max()) == 1
    # all three guesses, and the token behind them
    np.testing.assert_array_equal(stats["accepted"], 3)


def test_what_one_row_draws_does_not_depend_on_the_others():
    whole, few = drawn("model_3")[0][:20], drawn("model_3", count=20)[0]
    np.testing.assert_array_equal(whole, few)


def test_the_bound_refuses_a_law_that_is_slightly_wrong():
    probs = exactness.joint(TABLE, PLAIN)
    wrong = exactness.joint(TABLE.guided(OTHER, 1.06), PLAIN)
    strings = np.random.default_rng(0).choice(len(probs), COUNT, p=wrong / wrong.sum())
    strings = np.stack(np.unravel_index(strings, (VOCAB,) * TOKENS), axis=-1)
    assert exactness.total_variation(strings, probs) > exactness.bound(probs, COUNT)


def laws():
    """(law of the model, law of the draft): alike, apart, one-hot, with zeros."""
    p = jnp.asarray([0.1, 0.5, 0.0, 0.4])
    return {
        "alike": (p, p),
        "apart": (p, jnp.asarray([0.0, 0.0, 1.0, 0.0])),
        "one_hot": (p, jnp.asarray([0.0, 1.0, 0.0, 0.0])),
        "other": (p, jnp.asarray([0.4, 0.1, 0.3, 0.2])),
    }


@pytest.mark.parametrize("name", laws())
def test_one_slot_is_exact_in_closed_form(name):
    p, q = laws()[name]
    total = np.zeros(4)
    for x in range(4):
        _, left = trial(p, q, jnp.asarray(x), jnp.asarray(0.5))
        accepted = min(1.0, float(p[x] / q[x])) if q[x] else 0.0
        total[x] += float(q[x]) * accepted
        total += float(q[x]) * (1.0 - accepted) * np.asarray(left)
        at = [bool(trial(p, q, jnp.asarray(x), jnp.asarray(c))[0]) for c in (0.0, 0.999999)]
        assert at == [accepted > 0, accepted == 1.0] or not q[x]
    np.testing.assert_allclose(total, p, atol=1e-6)


@pytest.mark.parametrize("kind", ["given", "independent", "distinct"])
def test_siblings_are_exact_in_closed_form(kind):
    """Over all ordered draws of two siblings, the law of what comes out is the model's."""
    p, q = (np.asarray(v, np.float64) for v in laws()["other"])
    count, total, weights = 4000, np.zeros(4), 0.0
    rng = jax.random.key(4)
    for i, (a, b) in enumerate(itertools.product(range(4), repeat=2)):
        if kind == "independent":
            weight = q[a] * q[b]
        elif a == b:
            continue
        else:
            weight = q[a] * q[b] / (1.0 - q[a]) if kind == "distinct" else 1.0 / 12.0
        draft = Draft(
            jnp.tile(jnp.asarray([[0, a, b]], jnp.int32), (count, 1)),
            jnp.tile(jnp.asarray([[-1, 0, 0]], jnp.int32), (count, 1)),
            jnp.broadcast_to(jnp.asarray(q, jnp.float32), (count, 3, 4)),
        )
        probs = jnp.broadcast_to(jnp.asarray(p, jnp.float32), (count, 3, 4))
        verdict = verify(draft, probs, jax.random.fold_in(rng, i), kind, 2, 1)
        first = np.take_along_axis(np.asarray(draft.tokens), np.asarray(verdict.path), axis=1)[:, 0]
        out = np.where(np.asarray(verdict.accepted) > 0, first, verdict.token)
        total += weight * np.bincount(out, minlength=4) / count
        weights += weight
    np.testing.assert_allclose(weights, 1.0)
    np.testing.assert_allclose(total, p, atol=4 * 0.5 / np.sqrt(12 * count))


def test_beams_are_drawn_without_replacement():
    """Ordered pairs of continuations follow sequential sampling without replacement."""
    phi = jnp.log(jnp.asarray([0.6, 0.4]))
    laws = jnp.log(jnp.asarray([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]]))
    count = 40_000

    def pair(key):
        # beams are the two tokens of the first level, in the order of their scores
        noise = phi + jax.random.gumbel(jax.random.fold_in(key, 0), (2,))
        total = (phi[:, None] + laws)[None]
        scores = conditioned(total, noise[None], jax.random.fold_in(key, 1))
        return jax.lax.top_k(scores.reshape(-1), 2)[1]

    found = np.asarray(jax.jit(jax.vmap(pair))(jax.random.split(jax.random.key(0), count)))
    found = np.bincount(found[:, 0] * 6 + found[:, 1], minlength=36) / count
    leaf = np.exp(np.asarray(phi[:, None] + laws)).reshape(-1)
    expected = np.asarray(
        [leaf[a] * leaf[b] / (1 - leaf[a]) if a != b else 0.0 for a in range(6) for b in range(6)]
    )
    assert 0.5 * np.abs(found - expected).sum() < exactness.bound(expected, count)
