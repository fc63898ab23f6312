"""Law table of generations: stated network calls, neutral guidance, no host callback; clocks."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from nexttok.contexts import mask
from nexttok.contexts.contract import Calls
from nexttok.heads.draw import Draw
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.steps import random_order
from tests.generators import MAKERS, make, params_of, predicted, tokens_of

# LlamaGen and GIVT one a token, VAR one a scale, NBP one a block (after its lead, one a token), a
# schedule's steps elsewhere, xAR entities x solver steps
CALLS = {
    "flextok": 6, "qk_norm_rms": 6, "llamagen": 6, "nbp": 3, "nbp_hybrid": 4, "nbp_pure": 2,
    "var": 3, "randar": 6, "arpg": 3, "maskgit": 4, "mar": 4, "givt": 9, "givt_masked": 4,
    "xar": 20, "xar_subsamples": 20, "xar_whole": 5, "xar_scales": 15,
}  # fmt: skip


def generation(gen, guided=False, plan=None):
    """(params, key, guidance) -> (tokens of two samples, stats)."""
    plan = gen.plan if plan is None else plan
    label = jnp.asarray([0, 2], jnp.int32)

    def advance(coarse, ids, k):
        return coarse, jnp.ones((2, plan.sizes[k + 1], gen.spec.channels))

    def run(params, key, guidance):
        cache = gen.init_cache(4 if guided else 2, plan)
        first = jnp.zeros((2, 1, gen.spec.channels))
        state = (cache, None, first) if gen.inputs.levels else cache
        draw, scale = Draw(warper(1.0, 0, 0.0), 1.0), (lambda at: guidance) if guided else None
        step = gen.step(params, label, plan, draw, scale, 4.5, advance)
        shape = (2, plan.length) if gen.spec.vocab else (2, plan.length, gen.spec.channels)
        blank = jnp.zeros(shape, jnp.int32 if gen.spec.vocab else jnp.float32)
        order = random_order(key, 2, plan.length) if plan.kind == "random" else None
        return generate(step, plan, blank, state, key, order)

    return run


@functools.cache
def compiled(name, guided=False):
    return jax.jit(generation(make(name), guided))


def sample(name, guided=False, seed=1, guidance=1.0):
    scale = jnp.asarray(guidance, jnp.float32)
    return compiled(name, guided)(params_of(name), jax.random.key(seed), scale)


@functools.cache
def counted(name):
    """The generator, its network's calls named in a jaxpr."""
    gen, network = dataclasses.replace(make(name)), make(name).network

    def network_call(*args):
        return network.apply(*args)

    gen.__dict__["network"] = types.SimpleNamespace(apply=jax.jit(network_call))
    return gen


def network_calls(jaxpr):
    """Executions of the network, from the lengths of the loops around them."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") == "network_call":
            total += 1
            continue
        inner = sum(network_calls(j) for j in jaxprs_in_params(eqn.params))
        assert not inner or eqn.primitive.name in ("jit", "pjit", "scan")
        total += inner * eqn.params.get("length", 1)
    return total


SLOW = ("xar_scales", "xar_subsamples", "xar_whole")  # xar is quicker


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MAKERS]
)
def test_generates_in_the_stated_calls_and_guidance_of_one_is_neutral(name):
    gen = make(name)
    plain, stats = sample(name)
    assert int(stats["steps"]) == gen.plan.calls
    assert int(stats["network_calls"]) == CALLS[name]
    assert np.isfinite(np.asarray(plain, np.float32)).all()
    if gen.spec.vocab:
        assert 0 <= int(plain.min()) <= int(plain.max()) < gen.spec.vocab
    # rounding noise aside, guidance of 1 draws the same tokens
    np.testing.assert_allclose(plain, sample(name, guided=True)[0], rtol=1e-3, atol=1e-3)
    assert not np.allclose(plain, sample(name, seed=2)[0])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_the_network_runs_as_often_as_stated_without_host_callback(name, guided):
    args = params_of(name), jax.random.key(0), jnp.ones(())
    jaxpr = jax.make_jaxpr(generation(counted(name), guided))(*args)
    assert network_calls(jaxpr.jaxpr) == CALLS[name]
    assert "callback" not in str(jaxpr)


def test_a_prefix_of_the_steps_samples_a_prefix_of_the_tokens():
    short = make("flextok").plan.prefix(3)
    run = jax.jit(generation(make("flextok"), plan=short))
    short = run(params_of("flextok"), jax.random.key(1), jnp.ones(()))[0]
    np.testing.assert_array_equal(short, sample("flextok")[0][:, :3])


def test_guidance_moves_predictions():
    gen, tokens = make("flextok"), tokens_of("flextok")
    lesson = gen.lesson(tokens, jax.random.key(0))
    cond, null = (predicted("flextok", lesson, jnp.full((2,), c, jnp.int32)) for c in (1, -1))
    assert float(jnp.abs(cond - null).max()) > 1e-3


@pytest.mark.parametrize("given", [0, 2])
def test_confidence_noise_is_annealed_over_the_steps_that_run(given, monkeypatch):
    """tau (1 - (s + 1) / K) after step s of K (MaskGIT), none at the last; also when editing."""
    gen, weights = make("maskgit"), []
    plan, n = gen.plan.after(given), gen.spec.length

    def seen(order, hidden, sure):
        weights.append(float(sure[0, 0]))
        return order

    monkeypatch.setattr(mask, "surest_first", seen)
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.ones(shape))
    zeros = jnp.zeros((1, n))
    calls = Calls(
        net=lambda slots, cache: (jnp.zeros((1, gen.backbone.prefix + n, 1)), None, cache),
        sample=lambda hidden, other, at, key: (zeros.astype(jnp.int32), zeros),
        confidence=3.0,
    )
    step = gen.context.step(plan, calls, gen.backbone.prefix)
    with jax.disable_jit():
        blank = jnp.zeros((1, n), jnp.int32)
        _, stats = generate(step, plan, blank, None, jax.random.key(0), given=given)
    count = stats["steps"]
    assert count == min(4, n - given)
    np.testing.assert_allclose(weights, 3.0 * (1 - np.arange(1, count + 1) / count), atol=1e-6)
