"""ReCAP: groups of one step are the base sampler; what a local call computes is what a whole one
would, as far as what it keeps has not changed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mar, maskgit
from nexttok import sampling
from nexttok.config import ConfigError
from nexttok.contexts.mask import canvas, chosen_slots, placed
from nexttok.experiment import resolve
from nexttok.nn.cache import ragged
from nexttok.samplers.reuse import groups
from tests.generators import make, params_of, redrawn

LABEL, KEY = jnp.arange(3, dtype=jnp.int32), jax.random.key(0)


def test_groups_keep_the_steps():
    assert groups((1, 2, 3, 4, 5), 1, 1) == ((1,), (2, 3), (4, 5))
    assert groups((1, 2, 3, 4, 5), 0, 2) == ((1, 2, 3), (4, 5))
    assert groups((1, 2), 2, 1) == ((1,), (2,))
    with pytest.raises(ConfigError, match=r"sampler.whole = 3: expected 0 .. 2 steps"):
        groups((1, 2), 3, 1)


@functools.cache
def drawn(paper, guidance=2.0, **sampler):
    """Tokens and stats of a tiny variant, parameters redrawn."""
    config = paper.get_config("tiny")
    config.sampler.update(sampler)
    config.generator.plan.steps = 4
    config.sample.guidance = guidance if config.generator.class_dropout else 1.0
    if paper is mar:
        config.generator.head.update(steps=3, clip=2.0)
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": jax.tree.map(lambda x: 0.5 * x, redrawn(exp.generator))}
    tokens, stats = sampling.sampler(exp)(params, LABEL, KEY, sampling.blank(exp, len(LABEL)))
    return np.asarray(tokens), {k: int(v) for k, v in stats.items() if np.ndim(v) == 0}


@pytest.mark.parametrize(
    ("paper", "guidance"), [pytest.param(mar, 2.0, marks=pytest.mark.slow), (maskgit, 1.0)]
)
def test_groups_of_one_step_are_the_base(paper, guidance):
    tokens, stats = drawn(paper, guidance, name="recap", whole=4)
    np.testing.assert_allclose(tokens, drawn(paper, guidance)[0], rtol=1e-4, atol=1e-4)
    assert (stats["network_calls"], stats["local_calls"]) == (4, 0)


@pytest.mark.parametrize("paper", [pytest.param(mar, marks=pytest.mark.slow), maskgit])
def test_groups_spare_whole_calls(paper):
    tokens, stats = drawn(paper, name="recap", whole=1, local=1)
    assert (stats["network_calls"], stats["local_calls"]) == (3, 1)
    assert tokens.shape == drawn(paper)[0].shape
    assert np.isfinite(tokens).all()
    # what is drawn before the first local call does not know of it
    same = np.isclose(tokens, drawn(paper)[0], rtol=1e-4, atol=1e-4)
    assert 0 < same.sum() < same.size


def states(name, gen, params, slots, cache):
    return gen.network.apply({"params": params["backbone"]}, slots, LABEL[:2], cache)


def setting(name, depth=0):
    """A generator, its parameters, a canvas of two rows with its cache, and hidden positions."""
    gen, params = make(name), params_of(name)
    if depth:
        backbone = dataclasses.replace(gen.backbone, depth=depth)
        gen = dataclasses.replace(gen, backbone=backbone)
        params = redrawn(gen)
    n, prefix = gen.plan.length, gen.backbone.prefix
    shape = (2, n) if gen.spec.vocab else (2, n, gen.spec.channels)
    tokens = jnp.round(jax.random.uniform(jax.random.key(5), shape, maxval=4.0))
    tokens = tokens.astype(jnp.int32) if gen.spec.vocab else tokens
    order = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(KEY, 2))
    hidden = jnp.argsort(order, axis=1) >= 2
    cache = ragged(gen.kind.init_cache(gen.backbone, 2, prefix + n, "float32"))
    full = placed(canvas(tokens, hidden, prefix).replace(visible=prefix + 2), 2)
    return gen, params, tokens, full, cache, order[:, 2:5], prefix


NAMES = ("maskgit", "mar", "givt_masked")


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_call_does_not_depend_on_its_cache(name):
    gen, params, _, full, cache, _, _ = setting(name)
    plain = full.replace(written=None, steps=full.steps[0])
    found, _ = states(name, gen, params, full, cache)
    expected, _ = states(name, gen, params, plain, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_local_call_right_after_a_whole_one_changes_nothing(name):
    gen, params, tokens, full, cache, chosen, prefix = setting(name)
    whole, cache = states(name, gen, params, full, cache)
    front = prefix if prefix == 1 else 0
    local = chosen_slots(tokens[:, :0], chosen, prefix, front)
    found, _ = states(name, gen, params, local, cache)
    at = prefix + chosen
    expected = jnp.take_along_axis(whole, at[..., None], axis=1)
    np.testing.assert_allclose(found[:, front:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["maskgit", "givt_masked"])
def test_in_one_layer_what_is_kept_cannot_change(name):
    gen, params, tokens, full, cache, chosen, prefix = setting(name, depth=1)
    _, cache = states(name, gen, params, full, cache)
    new = jnp.take_along_axis(
        tokens, chosen[..., :2] if tokens.ndim == 2 else chosen[:, :2, None], 1
    )
    found, _ = states(name, gen, params, chosen_slots(new, chosen, prefix, prefix), cache)
    hidden = (full.kind == 2)[:, prefix:]
    hidden = hidden.at[jnp.arange(2)[:, None], chosen[:, :2]].set(False)
    whole, _ = states(name, gen, params, canvas(tokens, hidden, prefix), None)
    expected = jnp.take_along_axis(whole, (prefix + chosen)[..., None], axis=1)
    np.testing.assert_allclose(found[:, prefix:], expected, rtol=1e-4, atol=1e-5)
