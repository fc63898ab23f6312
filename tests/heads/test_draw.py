"""Draws from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.rng import categorical

LOGITS = 3.0 * jax.random.normal(jax.random.key(0), (2, 50))


@pytest.mark.parametrize("vocab", [1, 2, 50])
def test_draws_have_the_probabilities_of_the_softmax(vocab):
    logits = LOGITS[:2, :vocab].at[0, vocab // 2 :: 3].set(-jnp.inf if vocab > 1 else 0.0)
    count = 20_000
    rows = jnp.broadcast_to(logits[:, None], (2, count, vocab))
    drawn = np.asarray(jax.jit(categorical)(jax.random.key(3), rows))
    for ids, probs in zip(drawn, np.asarray(jax.nn.softmax(logits, -1)), strict=True):
        found = np.bincount(ids, minlength=vocab) / count
        assert not found[probs == 0].any()
        # expected distance of a sample of this size from its own distribution: at most this bound
        assert 0.5 * np.abs(found - probs).sum() < np.sqrt(vocab / count)


def test_draws_at_the_ends_of_the_unit_interval(monkeypatch):
    logits = jnp.log(jnp.asarray([[0.0, 0.3, 0.0, 0.4, 0.3, 0.0, 0.0]]))
    for point, expected in ((0.0, 1), (np.nextafter(1.0, 0.0, dtype=np.float32), 4), (0.5, 3)):
        monkeypatch.setattr(jax.random, "uniform", lambda _, shape, u=point: jnp.full(shape, u))
        assert categorical(jax.random.key(0), logits).tolist() == [expected]
