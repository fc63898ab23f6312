"""Editing through the sampler: known tokens stay, the others are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok import experiment
from nexttok.main import load_config
from nexttok.sampling import sampler
from tests.test_configs import ROOT


@pytest.mark.parametrize("name", ["randar", "arpg"])
def test_known_tokens_stay_and_others_vary(name):
    """Untrained: eight samples of one source, in two classes, guided."""
    config = load_config(f"{ROOT}/configs/{name}.py:tiny")
    exp = experiment.resolve(config)
    n, vocab = exp.generator.spec.length, exp.generator.spec.vocab
    shapes = jax.eval_shape(exp.generator.init, jax.random.key(0))
    draw = lambda x: 0.1 * jax.random.normal(jax.random.key(1), x.shape)
    params = {"tokenizer": {}, "generator": jax.tree.map(draw, shapes)}
    known = np.arange(n) % 3 == 0
    source = np.random.default_rng(2).integers(0, vocab, (1, n), np.int32)
    label = jnp.asarray([0, 1] * 4, jnp.int32)
    given = jnp.asarray(np.repeat(source, 8, axis=0))
    sample = sampler(exp, known)
    tokens, stats = sample(params, label, jax.random.key(3), given)
    np.testing.assert_array_equal(np.asarray(tokens)[:, known], given[:, known])
    drawn = np.asarray(tokens)[:, ~known]
    assert all(len(np.unique(column)) > 1 for column in drawn.T)
    assert ((drawn >= 0) & (drawn < vocab)).all()
    steps = min(exp.generator.plan.config.steps, n - int(known.sum()))
    assert int(stats["steps"]) == int(stats["network_calls"]) == steps
    # what is not known is never read
    other = jnp.where(known[None], given, 0)
    np.testing.assert_array_equal(tokens, sample(params, label, jax.random.key(3), other)[0])
