"""DiSA: fewer solver steps as a generation goes on, each as the head takes with that number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mar, xar
from nexttok import sampling
from nexttok.experiment import resolve
from nexttok.heads.draw import Draw
from nexttok.samplers.annealing import annealed
from nexttok.samplers.logits import warper
from tests.generators import make, params_of, redrawn

PLAIN = Draw(warper(1.0, 0, 0.0), 1.0)


def test_schedules_are_those_of_the_paper():
    assert annealed(50, 5, 5, "linear") == (50, 38, 27, 16, 5)
    assert annealed(50, 5, 5, "cosine") == (50, 43, 27, 11, 5)
    assert annealed(50, 15, 5, "two_stage") == (50, 50, 15, 15, 15)
    assert annealed(50, 15, 4, "two_stage") == (50, 50, 15, 15)
    assert annealed(25, 5, 1, "linear") == (25,)


def drawn(name, steps, draw):
    """Tokens of one step by a head of so many steps of its own."""
    head = dataclasses.replace(make(name).head, steps=steps)
    weights, key = params_of(name)["head"], jax.random.key(3)
    hidden = jax.random.normal(key, (2, 3, head.hidden))
    if name == "mar":
        return head.sample(weights, hidden, None, key, jnp.ones(()), draw)[0]
    noise = jax.random.normal(key, (2, 3, head.channels))
    velocity = lambda x, now: jnp.sin(3.0 * x) + now
    return head.integrate(velocity(noise, 1.0), velocity, noise, key, draw)


@pytest.mark.parametrize("name", ["mar", "xar"])
def test_a_step_of_few_is_that_of_a_head_of_few(name):
    params_of(name)  # not made while tracing
    counts = (6, 4, 4, 3)
    with_table = dataclasses.replace(PLAIN, solver_steps=counts)
    run = jax.jit(lambda index: drawn(name, 9, with_table.at(index)))
    for index, count in enumerate(counts):
        np.testing.assert_allclose(
            run(jnp.asarray(index)), drawn(name, count, PLAIN), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["mar", "xar"])
def test_the_same_number_throughout_is_the_base(name):
    same = dataclasses.replace(PLAIN, solver_steps=(7, 7, 7))
    np.testing.assert_array_equal(drawn(name, 9, same.at(1)), drawn(name, 7, PLAIN))


@pytest.mark.parametrize("paper", [pytest.param(mar, marks=pytest.mark.slow), xar])
def test_counts_what_it_spares(paper):
    config = paper.get_config("tiny")
    config.generator.head.steps = 10
    if paper is mar:
        config.generator.plan.steps = 4
    config.sampler.update(name="disa", solver_steps=(6, 2))
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator)}
    blank = sampling.blank(exp, 2)
    tokens, stats = sampling.sampler(exp)(params, jnp.zeros(2, jnp.int32), jax.random.key(0), blank)
    assert tokens.shape == blank.shape
    calls = "head_calls" if paper is mar else "network_calls"
    assert int(stats[calls]) == sum(annealed(6, 2, exp.plan.calls, "linear"))
