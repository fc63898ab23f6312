"""FLOPs of a trace, by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Shape

from nexttok import flops

F32 = jnp.float32
X, W = Shape((4, 8), F32), Shape((8, 8), F32)


def test_products_gradients_and_loops():
    assert flops.count(jnp.dot, X, W) == 2 * 4 * 8 * 8
    grad = jax.grad(lambda w, x: (x @ w).sum())
    assert flops.count(grad, W, X) == 2 * 2 * 4 * 8 * 8  # forward, and the weight's gradient
    loop = lambda x, w: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, 5)[0]
    assert flops.count(jax.jit(loop), X, W) == 5 * 2 * 4 * 8 * 8
    branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)
    assert flops.count(branch, X, W) == 2 * 4 * 8 * 8


def test_rematerialization_counts_twice():
    def loss(w, x):
        return (jnp.tanh(x @ w) ** 2).sum()

    once = flops.count(jax.grad(loss), W, X)
    again = flops.count(jax.grad(jax.checkpoint(loss)), W, X)
    assert again == pytest.approx(1.5 * once)


def test_convolutions_by_taps_that_meet_pixels():
    image, kernel = Shape((2, 8, 8, 3), F32), Shape((3, 3, 3, 5), F32)

    def conv(x, k, **options):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, dimension_numbers=numbers, **options)

    same = lambda x, k: conv(x, k, window_strides=(1, 1), padding="SAME")
    assert flops.count(same, image, kernel) == 2 * (2 * 8 * 8 * 5) * 27
    sides = ((1, 1), (1, 1))
    spread = lambda x, k: conv(x, k, window_strides=(1, 1), padding=sides, lhs_dilation=(2, 2))
    assert flops.count(spread, image, kernel) == 2 * (2 * 15 * 15 * 5) * 27 / 4
