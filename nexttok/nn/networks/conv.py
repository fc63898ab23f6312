"""The convolutional encoder and decoder of VQGAN and latent diffusion (Esser et al., 2021).

NHWC throughout. 1 x 1 convolutions are Linear layers; GroupNorm is one fused scale and shift.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.attention import attend
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.nn.linear import Linear
from nexttok.nn.networks import divided
from nexttok.nn.patches import unpatchify


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """Sizes of the pair.

    Attributes:
      width: channels at full resolution.
      multipliers: of the width, one per level; the stride is 2^(levels - 1).
      blocks: residual blocks per level (the decoder has one more).
      attention: levels with attention after each block; the middle has it too.
      groups: of GroupNorm.
      z_channels: between a network and its quantization convolution; 0 for the latent's own.
      quant_kernel: side of the two quantization convolutions, 1 (linear layers) or 3.
      where: config section that errors name.

    Networks around which others are built differ in more (see networks/qformer.py):
      middle_attention: whether the middle has it.
      quantized: whether the quantization convolutions are there.
      restyled: the decoder's levels begin with a RestyledNorm.
      shuffled: the decoder grows by convolutions to four times the channels, which become 2 x 2
        pixels, instead of by nearest neighbours and a convolution.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    groups: int = 32
    dtype: str = "float32"
    z_channels: int = 0
    quant_kernel: int = 1
    where: str = "tokenizer.encoder"
    last: ClassVar[tuple[str, ...]] = ("conv_out", "kernel")
    middle_attention: ClassVar[bool] = True
    quantized: ClassVar[bool] = True
    restyled: ClassVar[bool] = False
    shuffled: ClassVar[bool] = False

    def __post_init__(self):
        where = self.where
        for name in ("width", "blocks", "groups"):
            check(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "at least 1")
        levels, fits = len(self.multipliers), all(m >= 1 for m in self.multipliers)
        check(levels > 0 and fits, f"{where}.multipliers", self.multipliers,
              "one number of at least 1 per level")  # fmt: skip
        check(all(0 <= i < levels for i in self.attention), f"{where}.attention", self.attention,
              f"levels 0 .. {levels - 1}")  # fmt: skip
        for m in (1, *self.multipliers):
            fits = self.width * m % self.groups == 0
            check(fits, f"{where}.groups", self.groups, f"a divisor of {self.width * m} channels")
        check(self.z_channels >= 0, f"{where}.z_channels", self.z_channels, "at least 0")
        check(self.quant_kernel in (1, 3), f"{where}.quant_kernel", self.quant_kernel, "1 | 3")

    @property
    def stride(self) -> int:
        """Pixels per latent side."""
        return 2 ** (len(self.multipliers) - 1)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Latents (h, w) of pictures; see networks/__init__.py."""
        return divided(image_shape, (self.stride, self.stride), self.where)

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        del image_shape
        return Encoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, image_shape[-1])


class ResBlock(nn.Module):
    """norm-SiLU-conv twice, with a 1 x 1 shortcut where the width changes."""

    features: int
    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        c = self.config
        h = jax.nn.silu(GroupNorm(c.groups, name="norm1")(x))
        h = Conv(self.features, dtype=c.dtype, name="conv1")(h)
        h = jax.nn.silu(GroupNorm(c.groups, name="norm2")(h))
        h = Conv(self.features, dtype=c.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=c.dtype, name="out")(x)
        return x + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over positions, residual."""

    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        y = GroupNorm(self.config.groups, name="norm")(x).reshape(b, h * w, c)

        def project(name):
            return Linear(c, dtype=self.config.dtype, name=name)(y)[:, :, None]

        y = attend(project("wq"), project("wk"), project("wv"), None, c**-0.5)
        y = Linear(c, dtype=self.config.dtype, name="proj")(y[:, :, 0])
        return x + y.reshape(x.shape)


class Level(nn.Module):
    """Residual blocks of one resolution."""

    features: int
    blocks: int
    attention: bool
    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        for i in range(self.blocks):
            x = ResBlock(self.features, self.config, name=f"res{i}")(x)
            if self.attention:
                x = SpatialAttention(self.config, name=f"attn{i}")(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    config: ConvConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = ResBlock(x.shape[-1], self.config, name="res0")(x)
        if self.config.middle_attention:
            x = SpatialAttention(self.config, name="attn")(x)
        return ResBlock(x.shape[-1], self.config, name="res1")(x)


class RestyledNorm(nn.Module):
    """Group normalization whose scale and shift are read off latents: their deviation and mean."""

    config: ConvConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], style: Float[Array, "B h w c"]
    ) -> Float[Array, "B H W C"]:
        style = style.astype(jnp.float32)
        deviation = jnp.sqrt(style.var((1, 2), ddof=1) + 1e-6)
        scale = Linear(x.shape[-1], init="normal02", name="scale")(deviation)[:, None, None]
        shift = Linear(x.shape[-1], init="normal02", name="shift")(style.mean((1, 2)))[
            :, None, None
        ]
        y = GroupNorm(self.config.groups, affine=False, name="norm")(x.astype(jnp.float32))
        return (scale * y + shift).astype(x.dtype)


def _quantization(config: ConvConfig, channels: int) -> Callable:
    """The convolution on a network's side of the latents, in float32; or nothing."""
    if not config.quantized:
        return lambda x: x
    if config.quant_kernel == 1:
        return Linear(channels, name="out")
    return Conv(channels, name="conv_quant")


class Encoder(nn.Module):
    """Pictures [B, H, W, C] -> [B, H / stride, W / stride, channels]."""

    config: ConvConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        c = self.config
        x = Conv(c.width, dtype=c.dtype, name="conv_in")(x)
        for i, m in enumerate(c.multipliers):
            x = Level(c.width * m, c.blocks, i in c.attention, c, name=f"level{i}")(x)
            if i < len(c.multipliers) - 1:
                x = Conv(c.width * m, 2, c.dtype, name=f"conv_down{i}")(x)
        x = Middle(c, name="middle")(x)
        x = jax.nn.silu(GroupNorm(c.groups, name="norm")(x))
        x = Conv(c.z_channels or self.channels, dtype=c.dtype, name="conv_out")(x)
        return _quantization(c, self.channels)(x)


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> pictures [B, h * stride, w * stride, channels]."""

    config: ConvConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        c = self.config
        x = _quantization(c, c.z_channels or z.shape[-1])(z)
        style = x
        x = Conv(c.width * c.multipliers[-1], dtype=c.dtype, name="conv_in")(x)
        x = Middle(c, name="middle")(x)
        for i in reversed(range(len(c.multipliers))):
            features = c.width * c.multipliers[i]
            x = RestyledNorm(c, name=f"restyle{i}")(x, style) if c.restyled else x
            x = Level(features, c.blocks + 1, i in c.attention, c, name=f"level{i}")(x)
            if i > 0 and c.shuffled:
                x = Conv(4 * features, dtype=c.dtype, name=f"conv_up{i}")(x)
                x = unpatchify(x.reshape(len(x), -1, 4 * features), x.shape[1:3], (2, 2))
            elif i > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = Conv(features, dtype=c.dtype, name=f"conv_up{i}")(x)
        x = jax.nn.silu(GroupNorm(c.groups, name="norm")(x))
        return Conv(self.channels, dtype=c.dtype, name="conv_out")(x).astype(jnp.float32)


def make(section, dtype: str, where: str) -> ConvConfig:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(ConvConfig, section, where, named=True, dtype=dtype)
