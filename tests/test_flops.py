"""FLOPs of a trace, by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Shape

from nexttok import flops
from nexttok.aot import hlo

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


@pytest.mark.parametrize("options", [
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(2, 2), padding=((0, 1), (0, 1))),
    dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 2)),
    dict(window_strides=(1, 1), padding=((1, 2), (2, 1)), lhs_dilation=(2, 3)),
    dict(window_strides=(1, 1), padding="SAME", feature_group_count=3),
])  # fmt: skip
def test_convolutions_cost_what_xla_counts(options):
    """In the trace and in the compiled text alike: padding and holes cost nothing."""
    image = Shape((2, 8, 9, 3), F32)
    kernel = Shape((3, 3, 3 // options.get("feature_group_count", 1), 6), F32)

    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    compiled = jax.jit(conv).lower(image, kernel).compile()
    expected = compiled.cost_analysis()["flops"]
    assert flops.count(conv, image, kernel) == expected
    assert hlo.parse(compiled.as_text()).flops == expected


def test_a_convolution_by_hand():
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME")
    count = flops.count(conv, Shape((2, 3, 8), F32), Shape((5, 3, 3), F32))
    assert count == 2 * 2 * 3 * 5 * (8 * 3 - 2)  # at either end one tap meets no pixel
