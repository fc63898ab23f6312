"""The first VQ-VAE's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, vqvae
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings
from nexttok.nn.networks import strided

SHAPE = (16, 16, 3)


def sizes(**changes):
    return strided.make(
        common.section(**(vqvae.network() | dict(width=8, residual=4) | changes)), "float32", "t"
    )


def test_transposed_convolution_is_the_gradient_of_a_strided_one():
    """Its matrix is the transpose of a 4 x 4 convolution of stride 2 and padding 1."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    module = strided.Transposed(6)
    params = module.init(jax.random.key(1), x)["params"]
    y = module.apply({"params": params}, x)
    assert y.shape == (2, 6, 10, 6)
    turned = params["kernel"][::-1, ::-1].transpose(0, 1, 3, 2)  # windows of y to channels of x

    def down(y):
        return jax.lax.conv_general_dilated(
            y, turned, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    _, pull = jax.vjp(down, jnp.zeros_like(y))
    np.testing.assert_allclose(y, pull(x)[0], atol=1e-4)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_shapes_and_places(halvings):
    own = sizes(halvings=halvings)
    x = jnp.zeros((2, *SHAPE))
    grid = own.grid(SHAPE)
    assert grid == (16 >> halvings,) * 2
    encoder, decoder = own.encoder(SHAPE, 5), own.decoder(SHAPE)
    z, params = encoder.init_with_output(jax.random.key(0), x)
    y, more = decoder.init_with_output(jax.random.key(1), z)
    assert z.shape == (2, *grid, 5)
    assert y.shape == x.shape
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 1))
    param_shardings(mesh, {"encoder": params["params"], "decoder": more["params"]})
    assert more["params"][own.last[0]][own.last[1]].shape[-1] == 3


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"t\.halvings = 0: expected at least 1"):
        sizes(halvings=0)
    with pytest.raises(ConfigError, match=r"data\.resolution = 18: expected a multiple of 4"):
        sizes().grid((18, 18, 3))
