"""The convolutional encoder and decoder of MaskGIT (Chang et al., 2022), which GIVT shares.

No attention, mean pooling between levels, no biases in residual blocks. Sizes are a ConvConfig
without attention, z_channels or a quantization kernel: a 1 x 1 convolution ends the encoder. The
released networks see pictures in [0, 1]; here they are in [-1, 1] outside, as everywhere.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.nn.linear import Linear
from nexttok.nn.networks.conv import ConvConfig


@dataclasses.dataclass(frozen=True)
class PooledConfig(ConvConfig):
    """ConvConfig, whose attention, z_channels and quant_kernel this network has not."""

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        del image_shape
        return Encoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, image_shape[-1])


class ResBlock(nn.Module):
    """norm-SiLU-conv twice, with a 1 x 1 shortcut where the width changes.

    That shortcut reads the branch and not the block's input, as in the released weights.
    """

    features: int
    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        c, h = self.config, x
        for i in (1, 2):
            h = jax.nn.silu(GroupNorm(c.groups, name=f"norm{i}")(h))
            h = Conv(self.features, dtype=c.dtype, bias=False, name=f"conv{i}")(h)
        if x.shape[-1] != self.features:
            x = Linear(self.features, bias=False, dtype=c.dtype, name="out")(h)
        return x + h


class Level(nn.Module):
    """Residual blocks of one resolution."""

    features: int
    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        for i in range(self.config.blocks):
            x = ResBlock(self.features, self.config, name=f"res{i}")(x)
        return x


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Means over 2 x 2 pixels; sides are even."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Encoder(nn.Module):
    """Pictures [B, H, W, C] -> [B, H / stride, W / stride, channels], the latter in float32."""

    config: ConvConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        c = self.config
        x = Conv(c.width, dtype=c.dtype, bias=False, name="conv_in")((x + 1.0) / 2.0)
        for i, m in enumerate(c.multipliers):
            x = Level(c.width * m, c, name=f"level{i}")(x)
            if i < len(c.multipliers) - 1:
                x = halve(x)
        x = Level(x.shape[-1], c, name="middle")(x)
        x = jax.nn.silu(GroupNorm(c.groups, name="norm")(x))
        return Linear(self.channels, name="out")(x)


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> pictures [B, h * stride, w * stride, channels], in float32."""

    config: ConvConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        c = self.config
        x = Conv(c.width * c.multipliers[-1], dtype=c.dtype, name="conv_in")(z)
        x = Level(x.shape[-1], c, name="middle")(x)
        for i in reversed(range(len(c.multipliers))):
            x = Level(c.width * c.multipliers[i], c, name=f"level{i}")(x)
            if i > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = Conv(x.shape[-1], dtype=c.dtype, name=f"conv_up{i}")(x)
        x = jax.nn.silu(GroupNorm(c.groups, name="norm")(x))
        x = Conv(self.channels, dtype=c.dtype, name="conv_out")(x).astype(jnp.float32)
        return 2.0 * x - 1.0


def make(section, dtype: str, where: str) -> PooledConfig:
    """The sizes in a config section: width, multipliers, blocks, groups; ConfigError for wrong
    ones."""
    given = dict(attention=(), z_channels=0, quant_kernel=1, dtype=dtype)
    return build(PooledConfig, section, where, named=True, **given)
