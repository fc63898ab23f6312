"""bfloat16: parameters and losses stay float32, the maths in between is half as wide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generators import make, params_of, tokens_of
from tests.test_generation import generation


@pytest.mark.parametrize(
    "name",
    ["flextok", "maskgit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("arpg", "xar"))],
)
def test_losses_in_bfloat16_are_near_those_in_float32_and_tokens_are_drawn(name):
    gen, params, tokens = make(name), params_of(name), tokens_of(name)
    params = jax.tree.map(lambda x: 0.3 * x, params)  # small activations
    half = dataclasses.replace(gen, dtype="bfloat16")
    label = jnp.asarray([0, 2], jnp.int32)
    losses = [
        jax.jit(lambda p, g=g: g.loss(p, tokens, label, None)[0])(params) for g in (gen, half)
    ]
    assert losses[1].dtype == jnp.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1, atol=0.1)
    grads = jax.jit(jax.grad(lambda p: half.loss(p, tokens, label, jax.random.key(1))[0].mean()))
    leaves = jax.tree.leaves(grads(params))
    assert all(g.dtype == jnp.float32 and bool(jnp.isfinite(g).all()) for g in leaves)
    drawn = jax.jit(generation(half))(params, jax.random.key(2), jnp.ones(()))[0]
    assert np.isfinite(np.asarray(drawn, np.float32)).all()
