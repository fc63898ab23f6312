"""The encoder and decoder of the first VQ-VAE (van den Oord et al., "Neural Discrete Representation
Learning", 2017, as in google-deepmind/sonnet): strided convolutions and a residual stack."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.conv import Conv
from nexttok.nn.linear import Linear
from nexttok.nn.networks import divided


@dataclasses.dataclass(frozen=True)
class StridedConfig:
    """Sizes of the pair.

    Attributes:
      width: channels; the convolutions at higher resolutions have half of them.
      halvings: strided convolutions; the stride is 2^halvings.
      blocks: residual blocks of each network; residual: channels between their two convolutions.
    """

    width: int
    halvings: int
    blocks: int
    residual: int
    dtype: str = "float32"
    where: str = "tokenizer.encoder"

    last: ClassVar[tuple[str, ...]] = ("up0", "kernel")

    def __post_init__(self):
        for name, least in (("width", 2), ("halvings", 1), ("blocks", 0), ("residual", 1)):
            value = getattr(self, name)
            check(value >= least, f"{self.where}.{name}", value, f"at least {least}")

    def features(self, level: int) -> int:
        """Channels after `level` halvings."""
        return self.width if level == self.halvings else self.width // 2

    @property
    def stride(self) -> tuple[int, int]:
        """Rows, columns per latent."""
        return 2**self.halvings, 2**self.halvings

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Latents (h, w) of pictures; see networks/__init__.py."""
        return divided(image_shape, self.stride, self.where)

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        del image_shape
        return Encoder(self, channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, image_shape[-1])


class Transposed(nn.Module):
    """Transposed 4 x 4 convolution of stride 2."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        init = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", init, (4, 4, x.shape[-1], self.features))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1, 1), ((2, 2), (2, 2)),
            lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Residual(nn.Module):
    """A 3 x 3 convolution, then `blocks` times x + conv1(relu(conv3(relu(x)))), then ReLU."""

    config: StridedConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        c = self.config
        x = Conv(c.width, dtype=c.dtype, name="conv_in")(x)
        for i in range(c.blocks):
            h = Conv(c.residual, dtype=c.dtype, name=f"conv{i}")(jax.nn.relu(x))
            h = jax.nn.relu(h)
            x = x + Linear(c.width, dtype=c.dtype, name=f"mix{i}")(h)
        return jax.nn.relu(x)


class Encoder(nn.Module):
    """Pictures -> latents [B, h, w, channels], in float32."""

    config: StridedConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        c = self.config
        for i in range(c.halvings):
            conv = Conv(c.features(i + 1), 2, c.dtype, 4, (1, 1), name=f"conv_down{i}")
            x = jax.nn.relu(conv(x))
        return Linear(self.channels, name="out")(Residual(c, name="stack")(x))


class Decoder(nn.Module):
    """Latents -> pictures of `channels` channels, in float32."""

    config: StridedConfig
    channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        c = self.config
        x = Residual(c, name="stack")(z)
        for i in reversed(range(1, c.halvings)):
            x = jax.nn.relu(Transposed(c.features(i), c.dtype, name=f"up{i}")(x))
        return Transposed(self.channels, c.dtype, name="up0")(x).astype(jnp.float32)


def make(section, dtype: str, where: str) -> StridedConfig:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(StridedConfig, section, where, named=True, dtype=dtype)
