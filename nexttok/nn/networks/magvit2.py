"""The causal convolutional encoder and decoder of videos (Yu et al., "Language Model Beats
Diffusion: Tokenizer is Key to Visual Generation", 2023), as Next Block Prediction trains them.

[B, T, H, W, C] throughout. A frame sees itself and earlier ones, and the first frame stands alone:
1 + k stride frames become 1 + k latent frames. Convolutions are 2D ones whose channels are the
frames under their window, as in networks/video.py. The released networks see pixels in [0, 1];
here they are in [-1, 1] outside, as everywhere.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.nn.linear import Linear
from nexttok.nn.networks import causal_divided
from nexttok.nn.networks.video import fold, unfold


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """Sizes of the pair.

    Attributes:
      width: channels at full resolution; multipliers: of the width, one per level.
      blocks: residual blocks per level, and between the last level and the latents.
      time_levels: so many of the strides between levels, the last ones, halve time as well.
      groups: of GroupNorm.
      where: config section that errors name.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    time_levels: int
    groups: int
    dtype: str = "float32"
    where: str = "tokenizer.encoder"
    last: ClassVar[tuple[str, ...]] = ("conv_out", "conv", "kernel")

    def __post_init__(self):
        where, strides = self.where, len(self.multipliers) - 1
        fits = strides >= 0 and all(m >= 1 for m in self.multipliers)
        check(fits, f"{where}.multipliers", self.multipliers, "one number of at least 1 per level")
        check(self.blocks >= 1, f"{where}.blocks", self.blocks, "at least 1")
        check(0 <= self.time_levels <= strides, f"{where}.time_levels", self.time_levels,
              f"0 .. {strides}, the strides between levels")  # fmt: skip
        for channels in (self.width * m for m in self.multipliers):
            fits = self.groups >= 1 and channels >= 1 and channels % self.groups == 0
            check(fits, f"{where}.groups", self.groups, f"a divisor of {channels} channels")

    @property
    def cells(self) -> tuple[tuple[int, int, int], ...]:
        """Stride (frames, rows, columns) between level i and level i + 1."""
        strides = len(self.multipliers) - 1
        return tuple((1 + (i >= strides - self.time_levels), 2, 2) for i in range(strides))

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, rows, columns per latent."""
        space = 2 ** (len(self.multipliers) - 1)
        return 2**self.time_levels, space, space

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Latents (t, h, w) of videos; see networks/__init__.py."""
        return causal_divided(image_shape, self.stride, self.where)

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "CausalEncoder":
        """Videos -> latents."""
        del image_shape
        return CausalEncoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "CausalDecoder":
        """Latents -> videos."""
        return CausalDecoder(self, image_shape[-1])


class CausalConv3D(nn.Module):
    """3D convolution, 3 wide; border pixels and the first frame are repeated beyond the clip.

    Attributes:
      features: output channels.
      stride: (frames, rows, columns), rows and columns alike.
    """

    features: int
    stride: tuple[int, ...] = (1, 1, 1)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        frames = x.shape[1]
        x = jnp.pad(x, ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        taps = [x[:, i : i + frames : self.stride[0]] for i in range(3)]
        stacked = jnp.concatenate(taps, axis=-1)
        conv = Conv(self.features, self.stride[1], self.dtype, pad=(0, 0), name="conv")
        y = conv(fold(stacked))
        return y.reshape(*stacked.shape[:2], *y.shape[1:])


class Swish(nn.Module):
    """x sigmoid(s x) of a group normalization of every frame; channels have their own s."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        y = GroupNorm(self.groups, 1e-5, name="norm")(fold(x)).reshape(x.shape)
        slope = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        return y * jax.nn.sigmoid(slope.astype(y.dtype).reshape(1, 1, 1, 1, -1) * y)


class Level(nn.Module):
    """Residual blocks: Swish and convolution, twice, and a linear shortcut to another width."""

    features: int
    config: CausalConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        c = self.config
        for i in range(c.blocks):
            h = x
            for j in (1, 2):
                h = Swish(c.groups, name=f"in{i}_{j}")(h)
                h = CausalConv3D(self.features, dtype=c.dtype, name=f"conv{i}_{j}")(h)
            if x.shape[-1] != self.features:
                x = Linear(self.features, dtype=c.dtype, name="out")(x)
            x = x + h
        return x


class CausalEncoder(nn.Module):
    """Videos -> latents, `channels` wide."""

    config: CausalConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w c"]:
        c = self.config
        x = CausalConv3D(c.width * c.multipliers[0], dtype=c.dtype, name="conv_in")(0.5 * (x + 1.0))
        for i, m in enumerate(c.multipliers):
            x = Level(c.width * m, c, name=f"level{i}")(x)
            if i < len(c.cells):
                x = CausalConv3D(c.width * m, c.cells[i], c.dtype, name=f"conv_down{i}")(x)
        x = Level(x.shape[-1], c, name="middle")(x)
        return Linear(self.channels, name="out")(Swish(c.groups, name="last")(x))


class CausalDecoder(nn.Module):
    """Latents -> videos of `channels` channels."""

    config: CausalConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B t h w c"]) -> Float[Array, "B T H W C"]:
        c = self.config
        x = CausalConv3D(c.width * c.multipliers[-1], dtype=c.dtype, name="conv_in")(z)
        x = Level(x.shape[-1], c, name="middle")(x)
        for i in reversed(range(len(c.multipliers))):
            x = Level(c.width * c.multipliers[i], c, name=f"level{i}")(x)
            if i > 0:
                time, rows, columns = c.cells[i - 1]
                features = x.shape[-1] * time * rows * columns
                x = CausalConv3D(features, dtype=c.dtype, name=f"conv_up{i}")(x)
                x = unfold(x, c.cells[i - 1])[:, time - 1 :]  # the first frame stays one
        x = Swish(c.groups, name="last")(x)
        y = CausalConv3D(self.channels, dtype=c.dtype, name="conv_out")(x)
        return 2.0 * y.astype(jnp.float32) - 1.0


def make(section, dtype: str, where: str) -> CausalConfig:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(CausalConfig, section, where, named=True, dtype=dtype)
