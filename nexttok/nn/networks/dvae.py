"""The discrete VAE's encoder and decoder in SLATE (Singh et al., "Illiterate DALL-E Learns to
Compose", 2021): cells of pixels that hardly see each other, so that codes stay local.

Released networks see pixels in [0, 1]; here they are in [-1, 1] outside, as everywhere.
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
from nexttok.nn.networks import divided
from nexttok.nn.patches import unpatchify


@dataclasses.dataclass(frozen=True)
class DVAESizes:
    """Sizes of the pair.

    Attributes:
      width: channels.
      halvings: the stride is 2^halvings: one convolution of the encoder, a level of the decoder
        for each.
      mixes: 1 x 1 convolutions of the encoder, or of every level of the decoder.
    """

    width: int
    halvings: int
    mixes: int
    dtype: str = "float32"
    where: str = "tokenizer.encoder"

    last: ClassVar[tuple[str, ...]] = ("out", "kernel")

    def __post_init__(self):
        for name, least in (("width", 1), ("halvings", 1), ("mixes", 0)):
            value = getattr(self, name)
            check(value >= least, f"{self.where}.{name}", value, f"at least {least}")

    @property
    def stride(self) -> int:
        """Pixels per latent, along both axes."""
        return 2**self.halvings

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Latents (h, w) of pictures; see networks/__init__.py."""
        return divided(image_shape, (self.stride,) * 2, self.where)

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        del image_shape
        return Encoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, image_shape[-1])


def normed(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """ReLU of a normalization of the whole picture; inside a module's `__call__`."""
    return jax.nn.relu(GroupNorm(1, 1e-5, name="norm")(x))


class Mix(nn.Module):
    """A 1 x 1 convolution, normalized."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        init = nn.initializers.he_uniform()
        return normed(Linear(self.features, False, init, self.dtype, name="project")(x))


class Window(nn.Module):
    """A convolution, normalized; `stride` > 1 is its side as well, else it is 3 x 3."""

    features: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        side, pad = (self.stride, (0, 0)) if self.stride > 1 else (3, (1, 1))
        init = nn.initializers.he_uniform()
        conv = Conv(self.features, self.stride, self.dtype, side, pad, False, init, name="conv")
        return normed(conv(x))


class Encoder(nn.Module):
    """Pictures -> latents [B, h, w, channels], in float32."""

    sizes: DVAESizes
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        s = self.sizes
        x = Window(s.width, s.stride, s.dtype, name="window")(0.5 * x + 0.5)
        for i in range(s.mixes):
            x = Mix(s.width, s.dtype, name=f"mix{i}")(x)
        return Linear(self.channels, name="out")(x)


class Decoder(nn.Module):
    """Latents -> pictures of `channels` channels, in float32."""

    sizes: DVAESizes
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        s = self.sizes
        x = normed(z.astype(s.dtype))
        for level in range(s.halvings):
            x = Window(s.width, 1, s.dtype, name=f"window{level}")(x)
            for i in range(s.mixes):
                x = Mix(s.width, s.dtype, name=f"level{level}_mix{i}")(x)
            x = Mix(4 * s.width, s.dtype, name=f"spread{level}")(x)
            b, h, w, c = x.shape
            x = unpatchify(x.reshape(b, h * w, c), (h, w), (2, 2))
        return 2.0 * Linear(self.channels, name="out")(x).astype(jnp.float32) - 1.0


def make(section, dtype: str, where: str) -> DVAESizes:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(DVAESizes, section, where, named=True, dtype=dtype)
