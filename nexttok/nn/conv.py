"""Convolutions and their normalization, NHWC."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.nn.linear import INITS


class Conv(nn.Module):
    """Square convolution.

    Attributes:
      features: output channels.
      stride: of the window.
      side: of the kernel.
      pad: pixels before and after, along both axes; None pads by one, at stride 2 right and
        bottom only, as the reference does.
      bias: whether there is one.
      kernel_init: initializer of the kernel; the bias starts at zero.
    """

    features: int
    stride: int = 1
    dtype: str = "float32"
    side: int = 3
    pad: tuple[int, int] | None = None
    bias: bool = True
    kernel_init: Callable = INITS["xavier"]

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        pad = self.pad or ((1, 1) if self.stride == 1 else (0, 1))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (self.stride,) * 2, (pad, pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class GroupNorm(nn.Module):
    """Group normalization from channel sums, float32 statistics."""

    groups: int
    eps: float = 1e-6
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, _h, _w, c = x.shape
        scale, bias = jnp.ones(c), jnp.zeros(c)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones_init(), (c,))
            bias = self.param("bias", nn.initializers.zeros_init(), (c,))
        wide = x.astype(jnp.float32)

        def grouped(channel_means):
            means = channel_means.reshape(b, self.groups, -1).mean(-1, keepdims=True)
            return jnp.broadcast_to(means, (b, self.groups, c // self.groups)).reshape(b, c)

        mean = grouped(wide.mean((1, 2)))
        spread = grouped(jnp.square(wide - mean[:, None, None]).mean((1, 2)))
        gain = jax.lax.rsqrt(spread + self.eps) * scale[None]
        shift = bias[None] - mean * gain
        return (wide * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)
