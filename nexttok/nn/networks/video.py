"""The convolutional encoder and decoder of videos (after Yan et al., "VideoGPT: Video Generation
using VQ-VAE and Transformers", 2021).

[B, T, H, W, C] throughout. A 3D convolution is a 2D one whose channels are the frames under its
window: on a CPU XLA's own 3D convolutions take 2 to 100 times as long, gradients included.
Normalization is by groups, where VideoGPT normalizes over the batch. A causal pair, which VideoGPT
does not have, sees of a frame itself and earlier ones; its first frame stands alone, and attention
and normalization stay inside a frame.
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.attention import attend
from nexttok.nn.conv import Conv, GroupNorm
from nexttok.nn.linear import Linear
from nexttok.nn.networks import causal_divided, divided

AXES = {"time": 1, "height": 2, "width": 3}


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Sizes of the pair.

    Attributes:
      width: channels.
      stride: (frames, rows, columns) per latent, powers of two; rows and columns alike.
      blocks: residual blocks of each network.
      heads: of the axial attention that ends a block; 0 for none.
      groups: of GroupNorm.
      causal: no frame sees later ones; 1 + k stride frames become 1 + k.
      where: config section that errors name.
    """

    width: int
    stride: tuple[int, ...]
    blocks: int
    heads: int
    groups: int
    causal: bool
    dtype: str = "float32"
    where: str = "tokenizer.encoder"
    last: ClassVar[tuple[str, ...]] = ("up0", "conv", "conv", "kernel")

    def __post_init__(self):
        where, width = self.where, self.width
        for name, least in (("width", 2), ("blocks", 0), ("heads", 0), ("groups", 1)):
            value = getattr(self, name)
            check(value >= least, f"{where}.{name}", value, f"at least {least}")
        powers = all(s >= 1 and s & (s - 1) == 0 for s in self.stride)
        fits = len(self.stride) == 3 and powers and self.stride[1] == self.stride[2]
        check(fits, f"{where}.stride", self.stride,
              "powers of two (frames, rows, columns), rows and columns alike")  # fmt: skip
        divides = width % 2 == 0 and width // 2 % self.groups == 0
        check(divides, f"{where}.groups", self.groups, f"a divisor of half of the {width} channels")
        check(not self.heads or width % self.heads == 0, f"{where}.heads", self.heads,
              f"a divisor of the {width} channels")  # fmt: skip

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(time, space) stride of each strided convolution; the smaller axis stops early."""
        time, space = (s.bit_length() - 1 for s in self.stride[:2])
        return tuple((1 + (i < time), 1 + (i < space)) for i in range(max(time, space)))

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Latents (t, h, w) of videos; see networks/__init__.py."""
        divide = causal_divided if self.causal else divided
        return divide(image_shape, self.stride, self.where)

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "VideoEncoder":
        """Videos -> latents."""
        del image_shape
        return VideoEncoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "VideoDecoder":
        """Latents -> videos."""
        return VideoDecoder(self, image_shape[-1])


def fold(x: Float[Array, "B T H W C"]) -> Float[Array, "BT H W C"]:
    """Frames as pictures of a larger batch."""
    return x.reshape(-1, *x.shape[2:])


class Conv3D(nn.Module):
    """3D convolution; the output has ceil(size / stride) positions along an axis that it divides.

    Attributes:
      features: output channels.
      stride: (time, space); windows are 3 wide, 4 along strided axes.
      bias: whether there is one.
      causal: windows are 3 frames wide and end at the last frame that an output stands for, the
        first alone; it is repeated before the clip.
    """

    features: int
    stride: tuple[int, int] = (1, 1)
    dtype: str = "float32"
    bias: bool = True
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        (step, space), frames = self.stride, x.shape[1]
        around, mode = ((2, 0), "edge") if self.causal else ((1, 1), "constant")
        x = jnp.pad(x, ((0, 0), around, (0, 0), (0, 0), (0, 0)), mode=mode)
        window = 3 if step == 1 or self.causal else 4
        taps = [x[:, i : i + frames - (window - 3) : step] for i in range(window)]
        stacked = jnp.concatenate(taps, axis=-1)
        side = 3 if space == 1 else 4
        y = Conv(self.features, space, self.dtype, side, (1, 1), self.bias, name="conv")(
            fold(stacked)
        )
        return y.reshape(*stacked.shape[:2], *y.shape[1:])


def unfold(y: Float[Array, "B t h w CD"], cell: tuple[int, ...]) -> Float[Array, "B T H W D"]:
    """Every position becomes a cell (frames, rows, columns): channels hold it in this order."""
    features = y.shape[-1] // math.prod(cell)
    sizes = [n * s for n, s in zip(y.shape[1:4], cell, strict=True)]
    y = y.reshape(*y.shape[:4], *cell, features).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(len(y), *sizes, features)


class Expand(nn.Module):
    """Upsampling by a convolution that computes every position of a latent's cell at once."""

    features: int
    stride: tuple[int, int]
    dtype: str
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B t h w C"]) -> Float[Array, "B T H W D"]:
        time, space = self.stride
        cell = (time, space, space)
        y = Conv3D(
            self.features * math.prod(cell), dtype=self.dtype, causal=self.causal, name="conv"
        )(x)
        return unfold(y, cell)[:, time - 1 if self.causal else 0 :]


class Normed(nn.Module):
    """relu of a group normalization over the whole clip, or over every frame."""

    groups: int
    framewise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        b, t, h, w, c = x.shape
        rows = (b * t, h, w, c) if self.framewise else (b, t * h, w, c)
        y = GroupNorm(self.groups, name="norm")(x.reshape(rows))
        return jax.nn.relu(y).reshape(x.shape)


class AxisAttention(nn.Module):
    """Self-attention among the positions that differ along one axis only."""

    axis: int
    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        rows = jnp.moveaxis(x, self.axis, 3)
        flat = rows.reshape(-1, *rows.shape[3:])
        n, length, width = flat.shape

        def project(name):
            y = Linear(width, bias=False, dtype=self.dtype, name=name)(flat)
            return y.reshape(n, length, self.heads, -1)

        scale = (width // self.heads) ** -0.5
        y = attend(project("wq"), project("wk"), project("wv"), None, scale)
        y = Linear(width, dtype=self.dtype, name="proj")(y.reshape(flat.shape))
        return jnp.moveaxis(y.reshape(rows.shape), 3, self.axis)


class Block(nn.Module):
    """Residual: half-width 3D convolution, back to full width, sum of three axial attentions."""

    config: VideoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        c = self.config
        h = Normed(c.groups, c.causal, name="in1")(x)
        h = Conv3D(c.width // 2, dtype=c.dtype, bias=False, causal=c.causal, name="conv1")(h)
        h = Normed(c.groups, c.causal, name="in2")(h)
        h = Linear(c.width, bias=False, dtype=c.dtype, name="out")(h)
        if c.heads:
            h = Normed(c.groups, c.causal, name="in3")(h)
            axes = {n: a for n, a in AXES.items() if n != "time" or not c.causal}
            h = sum(AxisAttention(a, c.heads, c.dtype, name=n)(h) for n, a in axes.items())
        return x + h


class Blocks(nn.Module):
    """Residual blocks and a last normalization."""

    config: VideoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        c = self.config
        for i in range(c.blocks):
            x = Block(c, name=f"res{i}")(x)
        return Normed(c.groups, c.causal, name="last")(x)


class VideoEncoder(nn.Module):
    """Videos -> latents, one per cell of `stride` pixels, `channels` wide."""

    config: VideoConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w c"]:
        c = self.config
        for i, stride in enumerate(c.stages):
            conv = Conv3D(c.width, stride, c.dtype, causal=c.causal, name=f"conv{i}")
            x = jax.nn.relu(conv(x))
        x = Conv3D(c.width, dtype=c.dtype, causal=c.causal, name="conv_last")(x)
        return Linear(self.channels, name="out")(Blocks(c, name="stack")(x))


class VideoDecoder(nn.Module):
    """Latents -> videos of `channels` channels."""

    config: VideoConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B t h w c"]) -> Float[Array, "B T H W C"]:
        c = self.config
        x = Blocks(c, name="stack")(Linear(c.width, dtype=c.dtype, name="out")(z))
        for i in reversed(range(1, len(c.stages))):
            x = jax.nn.relu(Expand(c.width, c.stages[i], c.dtype, c.causal, name=f"up{i}")(x))
        stride = c.stages[0] if c.stages else (1, 1)
        return Expand(self.channels, stride, c.dtype, c.causal, name="up0")(x).astype(jnp.float32)


def make(section, dtype: str, where: str) -> VideoConfig:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(VideoConfig, section, where, named=True, dtype=dtype)
