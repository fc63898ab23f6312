"""ZipAR: its schedule, exactness where nothing it does not see matters, and raster as a limit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.rng import categorical, stream
from nexttok.samplers import exactness
from nexttok.samplers.adaptive import adaptive_zipar
from nexttok.samplers.logits import warper
from nexttok.samplers.zipar import wavefront, zipar

PLAIN = warper(1.0, 0, 0.0)
COUNT = 50_000


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (1, 4), (4, 1)])
def test_every_token_is_drawn_once_after_the_token_it_is_given(rows, columns):
    for window in (*range(1, columns + 1), 1.5, columns / 2):
        if not 1 <= window <= columns:
            continue
        found = wavefront(rows, columns, window)
        assert len(found.slots) == columns + math.ceil((rows - 1) * window)
        call_of = {}
        for call, (slots, held, drawn) in enumerate(
            zip(found.slots, found.held, found.drawn, strict=True)
        ):
            assert len(set(slots)) == len(slots)
            for slot, token, new in zip(slots, held, drawn, strict=True):
                if slot < rows * columns and slot > 0:
                    assert call_of[token] < call
                    assert token == slot - 1 or (new and slot % columns == 0)
            call_of |= {s: call for s, new in zip(slots, drawn, strict=True) if new}
        assert sorted(call_of) == list(range(rows * columns))
        for slot in range(columns, rows * columns):  # above, and to the right as far as the window
            right = min(slot % columns + int(window) - 1, columns - 1) - slot % columns
            assert call_of[slot - columns + right] < call_of[slot]
        # the true token before a row is read in whenever a stand-in was
        last = {s: t for row in zip(found.slots, found.held, strict=True)
                for s, t in zip(*row, strict=True)}  # fmt: skip
        assert all(last[s] == s - 1 for s in range(1, rows * columns))


def local_table(rows, columns, reach):
    """A table of 2 x 3 binary tokens: each depends on its left, its upper neighbour and `reach`
    tokens to the right of that."""
    table = exactness.make_table(jax.random.key(3), 2, rows * columns)
    logits, rng = np.asarray(table.logits).copy(), np.random.default_rng(0)
    first = 0
    for slot in range(rows * columns):
        seen = [slot - 1] if slot % columns else []
        above = [slot - columns + j for j in range(reach + 1) if slot % columns + j < columns]
        seen += [a for a in above if a >= 0]
        own = 3.0 * rng.normal(size=(2 ** len(seen), 2))
        for code in range(2**slot):
            bits = [code >> (slot - 1 - t) & 1 for t in seen]
            logits[first + code] = own[int("".join(map(str, bits)) or "0", 2)]
        first += 2**slot
    return dataclasses.replace(table, logits=jnp.asarray(logits))


@pytest.mark.parametrize(("reach", "window", "exact"), [(0, 1, True), (1, 2, True), (1, 1, False)])
def test_exact_where_tokens_depend_on_what_the_window_shows(reach, window, exact):
    table = local_table(2, 3, reach)
    run = jax.jit(
        lambda key: zipar(exactness.causal(table), wavefront(2, 3, window), PLAIN, COUNT, key)
    )
    strings, stats = run(jax.random.key(1))
    probs = exactness.joint(table, PLAIN)
    assert int(stats["network_calls"]) == 3 + window
    found = exactness.total_variation(strings, probs)
    assert (found < exactness.bound(probs, COUNT)) == exact


def test_a_window_of_all_columns_is_one_token_a_call():
    table = exactness.make_table(jax.random.key(2), 3, 6)
    model, key = exactness.causal(table), jax.random.key(9)
    found, stats = zipar(model, wavefront(2, 3, 3), PLAIN, 50, key)
    assert int(stats["network_calls"]) == 6
    tokens, state = jnp.zeros((50, 7), jnp.int32), model.start(50, 1)
    for i in range(6):
        given, at = tokens[:, max(i - 1, 0)][:, None], jnp.full((50,), i)
        logits, _, state = model.score(given, None, at, state)
        tokens = tokens.at[:, i].set(categorical(stream(key, "sample", i), PLAIN(logits))[:, 0])
    np.testing.assert_array_equal(found, tokens[:, :6])


def adaptive(table, least, count=COUNT):
    run = jax.jit(
        lambda key: adaptive_zipar(exactness.causal(table), (2, 3), least, PLAIN, count, key)
    )
    return jax.tree.map(np.asarray, run(jax.random.key(1)))


@pytest.mark.parametrize(("reach", "least"), [(0, 1), (1, 2), (2, 3)])
def test_a_wide_enough_window_is_kept_at_once(reach, least):
    table = local_table(2, 3, reach)
    strings, stats = adaptive(table, least)
    probs = exactness.joint(table, PLAIN)
    assert exactness.total_variation(strings, probs) < exactness.bound(probs, COUNT)
    np.testing.assert_array_equal(stats["rounds"], 3 + least)


def test_a_window_that_is_too_small_widens_by_itself():
    table = exactness.make_table(jax.random.key(6), 2, 6)
    probs = exactness.joint(table, PLAIN)
    run = jax.jit(lambda key: zipar(exactness.causal(table), wavefront(2, 3, 1), PLAIN, COUNT, key))
    fixed = exactness.total_variation(run(jax.random.key(1))[0], probs)
    strings, stats = adaptive(table, 1)
    assert exactness.total_variation(strings, probs) < 0.7 * fixed
    assert stats["rounds"].min() == 4  # as the fixed window
    assert stats["rounds"].max() == stats["network_calls"] == 6  # one token a call
    strings, stats = adaptive(table, 3)  # all tokens above
    assert exactness.total_variation(strings, probs) < exactness.bound(probs, COUNT)
    np.testing.assert_array_equal(stats["rounds"], 6)


@pytest.mark.parametrize("window", [0, 4])
def test_refuses_a_window_that_is_not_of_the_grid(window):
    with pytest.raises(ConfigError, match=r"sampler.lag = \d: expected 1 .. 3 columns"):
        wavefront(2, 3, window)
