"""The convolutional encoder and decoder of BiGR's binary autoencoder (Hao et al., 2024).

VQGAN's network (networks/conv.py) as it was released: pictures in [0, 1] inside, no activation
before the last convolutions, no quantization convolution behind the codes but a normalization of
them, and as many residual blocks per level of the decoder as of the encoder.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.nn.linear import Linear
from nexttok.nn.networks.conv import ConvConfig, Level, Middle


@dataclasses.dataclass(frozen=True)
class BigrConfig(ConvConfig):
    """ConvConfig; z_channels are those in front of the bits, and of what the decoder takes."""

    def __post_init__(self):
        super().__post_init__()
        fits = self.z_channels > 0 and self.z_channels % self.groups == 0
        check(fits, f"{self.where}.z_channels", self.z_channels, f"a multiple of {self.groups}")

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> logits of bits."""
        del image_shape
        return Encoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Codes -> pictures."""
        return Decoder(self, image_shape[-1])


class Encoder(nn.Module):
    """Pictures [B, H, W, C] -> [B, H / stride, W / stride, channels], in float32."""

    config: BigrConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        c = self.config
        x = Conv(c.width, dtype=c.dtype, name="conv_in")((x + 1.0) / 2.0)
        for i, m in enumerate(c.multipliers):
            x = Level(c.width * m, c.blocks, i in c.attention, c, name=f"level{i}")(x)
            if i < len(c.multipliers) - 1:
                x = Conv(c.width * m, 2, c.dtype, name=f"conv_down{i}")(x)
        x = GroupNorm(c.groups, name="norm")(Middle(c, name="middle")(x))
        return Linear(self.channels, name="out")(
            Conv(c.z_channels, dtype=c.dtype, name="conv_out")(x)
        )


class Decoder(nn.Module):
    """Codes [B, h, w, z_channels] -> pictures of `channels` channels, in float32."""

    config: BigrConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        c = self.config
        z = GroupNorm(c.groups, name="norm_in")(z)
        x = Conv(c.width * c.multipliers[-1], dtype=c.dtype, name="conv_in")(z)
        x = Middle(c, name="middle")(x)
        for i in reversed(range(len(c.multipliers))):
            features = c.width * c.multipliers[i]
            x = Level(features, c.blocks, i in c.attention, c, name=f"level{i}")(x)
            if i > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = Conv(features, dtype=c.dtype, name=f"conv_up{i}")(x)
        x = GroupNorm(c.groups, name="norm")(x)
        return (
            2.0 * Conv(self.channels, dtype=c.dtype, name="conv_out")(x).astype(jnp.float32) - 1.0
        )


def make(section, dtype: str, where: str) -> BigrConfig:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(BigrConfig, section, where, named=True, dtype=dtype, quant_kernel=1)
