"""The PatchGAN discriminator (Isola et al., "Image-to-Image Translation with Conditional GANs")."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.nn.conv import Conv, GroupNorm

NORMS = ("batch", "group")


def _around_one(key, shape, dtype=jnp.float32):
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
    """Normalizes a channel over batch and positions, eps 1e-5; there are no running statistics."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.param("scale", _around_one, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean((0, 1, 2), keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean((0, 1, 2), keepdims=True) + 1e-5)
        return (wide * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)).astype(x.dtype)


class PatchGAN(nn.Module):
    """Pictures -> logits of overlapping patches; 4 x 4 convolutions drawn from N(0, 0.02).

    Attributes:
      width: channels of the first convolution, doubled by each further one up to 8 x.
      layers: convolutions of stride 2; two of stride 1 follow.
      norm: batch, the official one, under which the pictures of a batch read each other; or group.
    """

    width: int = 64
    layers: int = 3
    norm: str = "batch"
    dtype: str = "float32"

    def logits_side(self, side: int) -> int:
        """Side of the map of logits; below 1 when the pictures are too small."""
        return side // 2**self.layers - 2

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w"]:
        for i in range(self.layers + 1):
            features = self.width * min(2**i, 8)
            stride = 2 if i < self.layers else 1
            x = self._conv(features, stride, i == 0, f"conv{i}")(x)
            if i > 0:
                x = self._norm(features, f"norm{i}")(x)
            x = jnp.where(x >= 0, x, 0.2 * x)
        return self._conv(1, 1, True, "conv_out")(x)[..., 0].astype(jnp.float32)

    def _conv(self, features, stride, bias, name):
        init = nn.initializers.normal(0.02)
        return Conv(features, stride, self.dtype, 4, (1, 1), bias, init, name=name)

    def _norm(self, features, name):
        if self.norm == "batch":
            return BatchNorm(name=name)
        return GroupNorm(math.gcd(32, features), name=name)
