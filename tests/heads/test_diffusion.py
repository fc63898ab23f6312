"""The diffusion head's chain (its numbers against official code are in tests/parity)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.heads.diffusion import Diffusion, ancestral, cosine_chain
from nexttok.mesh import MeshConfig, batch_sharding, make_mesh, param_shardings, use_mesh


@pytest.mark.parametrize("steps", [5, 100])
def test_clip_bounds_what_a_step_takes_the_token_to_be(steps):
    chain = cosine_chain(steps)
    x, noise = jnp.asarray([[0.5, -0.5, 0.1]]), jnp.asarray([[0.4, -0.4, 0.1]])
    nothing = jnp.zeros_like(x)

    def before(step, clip):
        at = jnp.asarray([step])
        return ancestral(chain, x, noise, nothing, at, nothing, 1.0, clip)[0]

    assert np.abs(before(steps - 1, 0.0)).max() > 30.0  # a tenth of noise, magnified
    assert np.abs(before(steps - 1, 2.0)).max() < 2.5
    small = before(0, 0.0)  # the last step ends at the clean token itself
    assert np.abs(small).max() < 2.0
    np.testing.assert_allclose(before(0, 2.0), small, rtol=1e-6)
    np.testing.assert_allclose(before(0, 0.2), jnp.clip(small, -0.2, 0.2), rtol=1e-6)


def test_a_negative_clip_is_refused():
    with pytest.raises(ConfigError, match="clip"):
        Diffusion(4, 8, 8, 1, 1, 5, -1.0)


def test_on_a_mesh_no_device_sees_the_tokens_of_all_examples():
    """Their number, times the noise levels, is many times that of the backbone's rows."""
    head = Diffusion(channels=4, hidden=8, width=16, depth=2, repeats=2, steps=5, clip=0.0)
    mesh = make_mesh(MeshConfig(1, -1, 1, 1, 1))
    params = jax.eval_shape(head.init_params, jax.random.key(0))
    params = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        params, param_shardings(mesh, params),
    )  # fmt: skip
    hidden, target = (
        jax.ShapeDtypeStruct((8, 7, n), jnp.float32, sharding=batch_sharding(mesh)) for n in (8, 4)
    )

    def loss(params, hidden, target):
        return head.loss(params, hidden, target, jax.random.key(1), True)[0].mean()

    with use_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, hidden, target).compile()
    rows = set(re.findall(r"f32\[(\d+),16\]", compiled.as_text()))
    assert str(2 * 7) in rows
    assert str(8 * 2 * 7) not in rows
