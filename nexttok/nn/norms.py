"""Layer and RMS normalization over the last axis, computed in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import ConfigError


def layer_norm(x: Float[Array, "*n d"], eps: float = 1e-5) -> Float[Array, "*n d"]:
    """(x - mean) / sqrt(var + eps), without affine parameters."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)


def rms_norm(x: Float[Array, "*n d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """x / sqrt(mean x^2 + eps), without affine parameters (Zhang and Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)


def unit(x: Float[Array, "*n d"], eps: float = 1e-12) -> Float[Array, "*n d"]:
    """x / max(|x|, eps)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(-1, keepdims=True), eps**2))
    return y.astype(x.dtype)


class Norm(nn.Module):
    """A normalization by name.

    Attributes:
      kind: layer | rms | none.
      affine: learn a scale (and, for layer, a bias unless `bias` is False).
      eps: added to the variance.
    """

    kind: str = "layer"
    affine: bool = False
    eps: float = 1e-5
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        if self.kind == "none":
            return x
        if self.kind not in ("layer", "rms"):
            raise ConfigError(f"norm = {self.kind!r}: expected layer, rms or none")
        y = layer_norm(x, self.eps) if self.kind == "layer" else rms_norm(x, self.eps)
        if not self.affine:
            return y
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        y = y * jnp.broadcast_to(scale.astype(y.dtype), y.shape)
        if self.kind == "layer" and self.bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
            y = y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
        return y
