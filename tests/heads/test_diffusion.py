"""The diffusion head's chain (its numbers against official code are in tests/parity)."""

import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.heads.diffusion import Diffusion, ancestral, cosine_chain


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
